"""``blockvault rebuild``: rebuild all tables from the event log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import output
from blockvault.cli.common import command, with_vault
from blockvault.cli.progress import progress

if TYPE_CHECKING:
    from blockvault.vault import Vault


_SHAPE = {
    "events": "events replayed",
    "rows": "rows in the tables afterwards",
    "changed_rows": "rows that differed from what the log says",
    "index_entries": "entries of the object index, rebuilt from the frames",
}


@command(
    "rebuild",
    examples={
        "blockvault rebuild": "Replay the log into fresh tables.",
        "blockvault rebuild --dry-run": "Tell whether that would change anything.",
    },
    shape=_SHAPE,
)
@click.option("-n", "--dry-run", is_flag=True, help="Compare only; change nothing.")
@with_vault
def run(vault: Vault, dry_run: bool, as_json: bool) -> None:
    """Rebuild all tables from the event log.

    Drops what follows from the log and replays it.  Branches, tags, reflogs and the object index
    come out the same; if they were damaged, they are mended.  It happens in one transaction:
    interrupted, it leaves everything as it was.  Not while gc runs.
    """
    from blockvault.ops.rebuild import rebuild

    with progress("Replaying", quiet=as_json) as report:
        done = rebuild(vault, dry_run=dry_run, progress=report)
    if as_json:
        output.write_json(output.pick(done, _SHAPE))
        return
    verb = "would be changed" if dry_run else "changed"
    output.write(
        f"{output.plural(done.events, 'event')} replayed: {output.plural(done.rows, 'row')}, "
        f"{done.changed_rows:,} {verb}; {done.index_entries:,} index entries"
    )
