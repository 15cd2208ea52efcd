"""``blockvault verify``: check that everything stored is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.progress import progress
from blockvault.errors import Damaged

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "verify",
    examples={
        "blockvault verify": "Read everything, check every hash.",
        "blockvault verify --fast": "Check the structure only.",
        "blockvault verify main~1": "One revision and what it needs.",
    },
    shape={
        "ok": "true if nothing is wrong",
        "objects": "objects checked",
        "bytes": "bytes of them",
        "events": "events checked",
        "problems[].kind": "what is wrong, for programs",
        "problems[].message": "what is wrong, for people",
    },
)
@click.argument("revision", metavar="[REV]", required=False, shell_complete=complete.revisions)
@click.option("--fast", is_flag=True, help="Check the structure, do not hash every object again.")
@with_vault
def run(vault: Vault, revision: str | None, fast: bool, as_json: bool) -> None:
    """Check that everything stored is whole.

    Follows the log's chain of hashes, compares the tables with it, walks every tree, and hashes
    every object again.  Nothing is changed.  Ends with exit code 6 if anything is wrong.
    """
    from blockvault.ops.check import verify

    with progress("Checking", quiet=as_json) as report:
        found = verify(vault, revision, fast=fast, progress=report)
    if as_json:
        problems = [output.pick(problem, ("kind", "message")) for problem in found.problems]
        counts = output.pick(found, ("ok", "objects", "bytes", "events"))
        output.write_json(counts | {"problems": problems})
    else:
        for problem in found.problems:
            output.write(f"{problem.kind}: {output.clean(problem.message)}")
    if not found.ok:
        raise Damaged(
            f"{output.plural(len(found.problems), 'problem')} found; nothing was changed, "
            "copy the vault before anything else"
        )
    if not as_json:
        checked = f"{output.plural(found.objects, 'object')} ({output.size(found.bytes)})"
        output.write(f"OK: {checked} and {output.plural(found.events, 'event')} checked")
