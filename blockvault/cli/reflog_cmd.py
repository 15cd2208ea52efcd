"""``blockvault reflog``: list where a branch has been."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.ids import short

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "reflog",
    examples={
        "blockvault reflog": "The current branch, newest first.",
        "blockvault reflog test -n 5": "The last five moves of branch test.",
        "blockvault rollback test 'test@{#1234}'": "Any line can be gone back to by its number.",
    },
    shape={
        "revision": "the state just after the move: BRANCH@{#SEQ}",
        "seq": "sequence number of the event",
        "time": "when it happened, UTC",
        "kind": "what happened: created, imported, snapshotted, rolled-back, volume-changed",
        "tip": "id of the newest snapshot in the branch's line after it, or null",
        "detail": "what it came from: file names, a revision, a volume",
    },
)
@click.argument("branch", required=False, shell_complete=complete.branches)
@click.option("-n", "--max-count", "count", metavar="N", type=click.IntRange(0), help="At most N.")
@with_vault
def run(vault: Vault, branch: str | None, count: int | None, as_json: bool) -> None:
    """List where a branch has been, newest first.

    Each line is a state that the branch stood at: rollback, branch, diff and checkout take its
    revision.  Single writes are listed by events.
    """
    name = branch or vault.head
    moves = islice(vault.reflog(name), count)
    if as_json:
        for move in moves:
            output.write_json(
                {
                    "revision": f"{name}@{{#{move.seq}}}",
                    "seq": move.seq,
                    "time": output.utc_time(move.time_us),
                    "kind": move.kind,
                    "tip": move.tip.hex() if move.tip else None,
                    "detail": move.detail,
                }
            )
        return
    rows = [
        (
            f"{name}@{{#{move.seq}}}",
            click.style(short(move.tip), fg="yellow") if move.tip else "-",
            output.local_time(move.time_us),
            f"{move.kind}{': ' if move.detail else ''}{output.clean(move.detail)}",
        )
        for move in moves
    ]
    for line in output.columns(rows):
        output.write(line)
