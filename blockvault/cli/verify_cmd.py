"""``blockvault verify``: check that everything stored is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, size_option, with_vault
from blockvault.cli.progress import progress
from blockvault.errors import Damaged
from blockvault.ids import short

if TYPE_CHECKING:
    from blockvault.ops.report import Report
    from blockvault.vault import Vault


def _share(text: str) -> float:
    """``5%`` as 0.05."""
    try:
        found = float(text.removesuffix("%")) / 100
    except ValueError:
        found = 0
    if not 0 < found <= 1:
        raise click.BadParameter(f"{text!r} is not a share such as 5%")
    return found


@command(
    "verify",
    examples={
        "blockvault verify": "Read everything, check every hash.",
        "blockvault verify --fast": "Check the structure only.",
        "blockvault verify main~1": "One revision, and a machine's memory that was kept with it.",
        "blockvault verify --since 'main@{1 day ago}'": "What came since then.",
        "blockvault verify --sample 5% --rate 50M": "A random part, at 50 MiB a second.",
        "blockvault verify --resume": "Go on where an interrupted verify was.",
    },
    shape={
        "ok": "true if nothing is wrong",
        "objects": "objects checked",
        "bytes": "bytes of them",
        "events": "events checked",
        "problems[].kind": "what is wrong, for programs",
        "problems[].message": "what is wrong, for people",
        "problems[].object": "id of the object that is lost, or null",
        "touched[].object": "id of a lost object, the first there",
        "touched[].revision": "a state that needs it",
        "touched[].volume": "the volume",
        "touched[].offset": "where the lost bytes begin",
        "touched[].length": "how many bytes; the last of 1,000 ranges of a volume of a state holds "
        "all that follow",
        "touched[].objects": "how many objects are lost there",
    },
)
@click.argument("revision", metavar="[REV]", required=False, shell_complete=complete.revisions)
@click.option("--fast", is_flag=True, help="Check the structure, do not hash every object again.")
@click.option("--since", metavar="REV", help="Read what was recorded after this revision.")
@click.option(
    "--sample", metavar="PERCENT", type=_share, default="100%", help="Read a random part."
)
@size_option("--rate", default="0", help="Read at most so many bytes a second.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted verify was.")
@with_vault
def run(
    vault: Vault,
    revision: str | None,
    fast: bool,
    since: str | None,
    sample: float,
    rate: int,
    resume: bool,
    as_json: bool,
) -> None:
    """Check that everything stored is whole.

    Follows the log's chain of hashes, compares the tables with it, walks every tree, and hashes
    every object again.  Nothing is changed.  Ends with exit code 6 if anything is wrong, and tells
    which bytes of which volumes are concerned.
    """
    from blockvault.ops.check import verify
    from blockvault.ops.check_frames import Scan

    if sum(map(bool, (revision, since, fast))) > 1:
        raise click.UsageError("REV, --since and --fast exclude each other")
    scan = Scan(sample, rate, resume)
    if (revision or since or fast) and scan != Scan():
        raise click.UsageError(
            "--sample, --rate and --resume go with a check of the whole vault: without REV, "
            "--since or --fast"
        )
    with progress("Checking", quiet=as_json) as report:
        found = verify(vault, revision, fast=fast, since=since, scan=scan, progress=report)
    if as_json:
        output.write_json(_json(found))
    else:
        for problem in found.problems:
            output.write(f"{problem.kind}: {output.clean(problem.message)}")
        for touched in found.touched:
            where = f"{touched.revision}:{output.clean(touched.volume)}"
            span = f"offset {touched.offset} length {touched.length}"
            count, one = touched.objects, f"object {short(touched.object)}"
            what = one if count == 1 else f"{count} objects"
            output.write(f"needed by {where} {span}: {what}")
    if not found.ok:
        raise Damaged(
            f"{output.plural(len(found.problems), 'problem')} found; nothing was changed, "
            "copy the vault before anything else"
        )
    if not as_json:
        checked = f"{output.plural(found.objects, 'object')} ({output.size(found.bytes)})"
        output.write(f"OK: {checked} and {output.plural(found.events, 'event')} checked")


def _json(found: Report) -> dict[str, Any]:
    problems = [
        output.pick(problem, ("kind", "message"))
        | {"object": problem.object.hex() if problem.object else None}
        for problem in found.problems
    ]
    touched = [each._asdict() | {"object": each.object.hex()} for each in found.touched]
    counts = output.pick(found, ("ok", "objects", "bytes", "events"))
    return counts | {"problems": problems, "touched": touched}
