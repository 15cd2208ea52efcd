"""``blockvault prune``: forget what the policies do not keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import complete, gc_cmd, keeping, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.progress import progress
from blockvault.errors import BadRequest
from blockvault.ids import short

if TYPE_CHECKING:
    from blockvault.ops.forget import Forgotten
    from blockvault.ops.prune import Plan, Verdict
    from blockvault.vault import Vault


@command(
    "prune",
    examples={
        "blockvault prune --dry-run": "What the stored policies would forget, and what that frees.",
        "blockvault prune": "Forget it; gc then gives the space back.",
        "blockvault prune --gc": "Both, one after the other.",
        "blockvault prune -b test --keep-last 3 --keep-events 0": "By these rules, one branch.",
    },
    shape={
        "dry_run": "true if nothing was changed",
        "snapshots[].id": "a snapshot that is forgotten",
        "snapshots[].message": "its message",
        "snapshots[].time": "when it was made",
        "snapshots[].dependents[]": "branches and snapshots that came from it and go on without it",
        "kept": "number of snapshots that stay",
        "branches[].name": "a branch of which older writes are forgotten",
        "branches[].kept_from": "event from which on it is complete",
        "dropped[]": "deleted branches that can be restored no more",
        "tags[]": "tags that go with their snapshots",
        "freed": "bytes that gc will be able to give back, null unless it is a dry run",
        "unreachable": "bytes that gc could give back already, null unless it is a dry run",
    },
)
@click.option("-b", "--branch", shell_complete=complete.branches, help="This branch only.")
@keeping.keep_options
@click.option("--gc", "collect", is_flag=True, help="Then give the space back, as gc does.")
@click.option("--dry-run", is_flag=True, help="Show what would go and why the rest stays.")
@with_vault
def run(
    vault: Vault,
    /,
    branch: str | None,
    collect: bool,
    dry_run: bool,
    as_json: bool,
    **keep: Any,
) -> None:
    """Forget snapshots and writes that the policies do not keep.

    By the stored policies, or by the rules given here.  A snapshot stays if any rule of any branch
    wants it, if it is held, if it has a tag that any of its branches keeps, or if it is the newest
    of a branch.  Writes older than --keep-events are reachable through snapshots only.  A branch
    that was deleted longer ago than that can be restored no more.  The space is given back by gc,
    with --gc at once: then the JSON has a second line, which is that of gc.
    """
    from blockvault.ops import forget, gc, policy
    from blockvault.ops.prune import plan as make_plan

    chosen = keeping.policy_from(keep)
    if chosen is None and not policy.show(vault):
        raise BadRequest(
            "nothing says what to keep: give --keep- options, or store them with 'policy set'"
        )
    plan = make_plan(vault, chosen, branch)
    freed, gone = None, forget.expected(plan)
    if dry_run:
        with progress("Marking", quiet=as_json) as report:
            freed = gc.freed_by(vault, plan, progress=report)
    elif not plan.empty:
        gone = forget.execute(vault, plan)
    if as_json:
        output.write_json(_json(plan, gone, dry_run, freed))
    else:
        if dry_run:
            _table(plan)
        _summary(plan, gone, freed, dry_run=dry_run, collect=collect)
    if collect and not dry_run:
        gc_cmd.collect(vault, as_json=as_json)


def _table(plan: Plan) -> None:
    rows = []
    for verdict in plan.verdicts:
        snapshot = verdict.snapshot
        word = "keep" if verdict.kept else click.style("forget", fg="red")
        rows.append(
            (
                word,
                click.style(short(snapshot.id), fg="yellow"),
                output.local_time(snapshot.time_us),
                output.subject(snapshot.message),
                _why(verdict),
            )
        )
    for line in output.columns(rows):
        output.write(line)


def _why(verdict: Verdict) -> str:
    if verdict.kept:
        return "; ".join(map(output.subject, verdict.reasons))
    return output.clean(f"goes on in {', '.join(verdict.dependents)}" if verdict.dependents else "")


def _summary(
    plan: Plan, gone: Forgotten, freed: tuple[int, int] | None, *, dry_run: bool, collect: bool
) -> None:
    would = "Would forget" if dry_run else "Forgot"
    count = len(gone.snapshots)
    output.write(f"{would} {output.plural(count, 'snapshot')}; {len(plan.verdicts) - count:,} stay")
    for cut in gone.cuts:
        since = output.local_time(cut.time_us)
        output.write(f"{would} writes to {cut.name} before {since} (event #{cut.seq})")
    for name in gone.branches:
        output.write(f"{would} deleted branch {name}")
    for name in gone.tags:
        output.write(f"{would} tag {name}")
    if freed is not None:
        output.write(f"gc would then give back {output.size(freed[0] + freed[1])}")
        output.write(f"of that it could already give back {output.size(freed[1])}")
    elif (count or gone.cuts or gone.branches) and not collect:
        output.write("'blockvault gc' gives the space back")


def _json(
    plan: Plan, gone: Forgotten, dry_run: bool, freed: tuple[int, int] | None
) -> dict[str, Any]:
    forgotten = set(gone.snapshots)
    return {
        "dry_run": dry_run,
        "snapshots": [
            {
                "id": verdict.snapshot.id.hex(),
                "message": verdict.snapshot.message,
                "time": output.utc_time(verdict.snapshot.time_us),
                "dependents": list(verdict.dependents),
            }
            for verdict in plan.verdicts
            if verdict.snapshot.id in forgotten
        ],
        "kept": len(plan.verdicts) - len(forgotten),
        "branches": [{"name": cut.name, "kept_from": cut.seq} for cut in gone.cuts],
        "dropped": list(gone.branches),
        "tags": list(gone.tags),
        "freed": None if freed is None else freed[0],
        "unreachable": None if freed is None else freed[1],
    }
