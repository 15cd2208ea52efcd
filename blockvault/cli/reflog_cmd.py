"""``blockvault reflog``: list where a branch has been."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import COUNT, command, with_vault
from blockvault.ids import short

if TYPE_CHECKING:
    from blockvault.ops.refs import Move
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
        "kind": "what happened: branch, import, snapshot, rollback or volume",
        "tip": "id of the newest snapshot in the branch's line after it, or null",
        "detail": "a message, or what it came from: file names, a revision, a volume",
    },
)
@click.argument("branch", required=False, shell_complete=complete.branches)
@click.option("-n", "--max-count", "count", metavar="N", type=COUNT, help="At most N.")
@with_vault
def run(vault: Vault, branch: str | None, count: int | None, as_json: bool) -> None:
    """List where a branch has been.

    Newest first.  Each line is a state that the branch stood at: rollback, branch, diff and
    checkout take its revision.  Single writes are listed by events.
    """
    name = branch or vault.head
    names = {branch.id: branch.name for branch in vault.branches(deleted=True)}
    rows = []
    for move in islice(vault.reflog(name), count):
        detail = _detail(vault, move, names)
        if as_json:
            output.write_json(_json(name, move, detail))
            continue
        rows.append(
            (
                f"{name}@{{#{move.seq}}}",
                click.style(short(move.tip), fg="yellow") if move.tip else "-",
                output.local_time(move.time_us),
                f"{move.kind}{': ' if detail else ''}{output.subject(detail)}",
            )
        )
    for line in output.columns(rows):
        output.write(line)


def _json(name: str, move: Move, detail: str) -> dict[str, object]:
    return {
        "revision": f"{name}@{{#{move.seq}}}",
        "seq": move.seq,
        "time": output.utc_time(move.time_us),
        "kind": move.kind,
        "tip": move.tip.hex() if move.tip else None,
        "detail": detail,
    }


def _detail(vault: Vault, move: Move, names: dict[int, str]) -> str:
    """What a move came from or was for."""
    if move.kind == "snapshot" and move.snapshot:
        return vault.get_snapshot(move.snapshot).message
    if move.kind in ("branch", "rollback"):
        branch, seq = move.detail
        word = "to" if move.kind == "rollback" else "from"
        return f"{word} {names.get(branch, branch)}@{{#{seq}}}" if branch else ""
    return " ".join(map(str, move.detail))
