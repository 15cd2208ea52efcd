"""``blockvault hold``: keep a state whatever the policies say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.ids import short

if TYPE_CHECKING:
    from blockvault.ops.policy import Hold
    from blockvault.vault import Vault


@command(
    "hold",
    examples={
        "blockvault hold": "List what is held.",
        "blockvault hold main~2 -m 'before the migration'": "Keep a snapshot until unhold.",
        "blockvault hold 'main@{10 minutes ago}'": "A state that is no snapshot becomes one.",
    },
    shape={
        "snapshot": "id of the snapshot that is held",
        "seq": "sequence number of the event",
        "time": "since when",
        "text": "why",
    },
)
@click.argument("revision", metavar="[REV]", required=False, shell_complete=complete.revisions)
@click.option("-m", "--message", default="", help="Why it is held.")
@with_vault
def run(vault: Vault, revision: str | None, message: str, as_json: bool) -> None:
    """Hold a revision so that no policy forgets it, or list what is held."""
    from blockvault.ops import policy

    if message and revision is None:
        raise click.UsageError("--message goes with REV: name what is to be held")
    found = policy.holds(vault) if revision is None else [policy.hold(vault, revision, message)]
    if as_json:
        for each in found:
            output.write_json(_json(each))
        return
    rows = [
        (click.style(short(each.snapshot), fg="yellow"), output.local_time(each.time_us),
         output.subject(each.text))
        for each in found
    ]  # fmt: skip
    for line in output.columns(rows):
        output.write(line)


def _json(each: Hold) -> dict[str, object]:
    return {
        "snapshot": each.snapshot.hex(),
        "seq": each.seq,
        "time": output.utc_time(each.time_us),
        "text": each.text,
    }
