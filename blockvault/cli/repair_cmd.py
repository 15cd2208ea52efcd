"""``blockvault repair``: bring back what is lost, from other copies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockvault.cli import output
from blockvault.cli.common import command, open_vault, vault_directory
from blockvault.cli.progress import progress
from blockvault.errors import Damaged

if TYPE_CHECKING:
    from blockvault.ops.repair import Plan, Repaired


@command(
    "repair",
    examples={
        "blockvault repair --dry-run --from /backup": "What another vault could bring back.",
        "blockvault repair --from /backup --from disk.img": "Bring it back.",
    },
    shape={
        "dry_run": "true if nothing was changed",
        "meta": "true if a page of the database was written anew; a dry run that finds one "
        "destroyed ends with exit code 6 instead",
        "problems": "how many problems verify found",
        "found": "lost objects of which a good copy was found",
        "lost": "objects that stay lost; they are never read as anything else",
        "touched": "how many ranges of volumes need those",
        "rows": "rows of tables that were mended",
        "index_entries": "entries of the object index that were mended",
    },
)
@click.option(
    "--from",
    "sources",
    metavar="PATH",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A vault, or an image, that may have good copies; nothing in it is trusted.",
)
@click.option("--dry-run", is_flag=True, help="Look, change nothing.")
def run(sources: tuple[Path, ...], dry_run: bool, as_json: bool) -> None:
    """Bring back what is lost.

    Verifies the vault, looks for good copies of lost objects, and mends tables and index from the
    log and the frames.  What cannot be found is taken out of the index, so that reading it fails,
    and comes back when its content is written again.  Damaged frames stay where they are.  Ends
    with exit code 6 if something stays lost, or if the log has a hole, which nothing can mend.
    Not while gc runs, and none begins meanwhile; a dry run may be made beside it.
    """
    from blockvault.store import salvage

    home = vault_directory()
    meta = salvage.damaged_meta(home) is not None
    if meta and dry_run:
        raise Damaged("a meta page is destroyed; repair would write it anew from the other one")
    if meta:
        salvage.rescue_meta(home)
    _repair(sources, dry_run, as_json, meta)


def _repair(sources: tuple[Path, ...], dry_run: bool, as_json: bool, meta: bool) -> None:
    from blockvault.ops import repair

    with open_vault() as vault, progress("Checking", quiet=as_json) as report:
        done: Repaired | None = None
        if dry_run:
            plan = repair.plan(vault, sources, progress=report)
        else:
            plan, done = repair.repair(vault, sources, progress=report)
    if as_json:
        output.write_json(_json(plan, done, dry_run, meta))
    else:
        _tell(plan, done, meta)
    if plan.lost:
        raise Damaged(f"{output.plural(len(plan.lost), 'object')} cannot be found: see verify")
    if plan.broken_log:
        raise Damaged(
            f"{plan.broken_log}; tables and index were left as they are. Restore a copy of the "
            "vault, or export from this one what can still be read"
        )


def _json(plan: Plan, done: Repaired | None, dry_run: bool, meta: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "meta": meta,
        "problems": len(plan.report.problems),
        "found": len(plan.found),
        "lost": len(plan.lost),
        "touched": len(plan.touched),
        "rows": done.rows if done else 0,
        "index_entries": done.index_entries if done else 0,
    }


def _tell(plan: Plan, done: Repaired | None, meta: bool) -> None:
    if meta:
        output.write("Wrote a destroyed meta page anew; what was there is in meta-*.damaged")
    if plan.sound:
        output.write("OK: nothing is wrong")
        return
    for problem in plan.report.problems:
        output.write(f"{problem.kind}: {output.clean(problem.message)}")
    for source, count in plan.sources.items():
        output.write(f"{output.clean(source)} has {output.plural(count, 'lost object')}")
    for touched in plan.touched:
        where = f"{touched.revision}:{output.clean(touched.volume)}"
        output.write(f"lost: {where} offset {touched.offset} length {touched.length}")
    if done is not None:
        output.write(
            f"Restored {output.plural(done.restored, 'object')}, mended "
            f"{output.plural(done.rows, 'row')} and {done.index_entries:,} entries of the index"
        )
