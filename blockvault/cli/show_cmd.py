"""``blockvault show``: describe one revision and what it changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import changes, complete, history, output
from blockvault.cli.common import command, with_vault
from blockvault.ids import SHORT_HEX, short

if TYPE_CHECKING:
    from blockvault.model.snapshot import Snapshot
    from blockvault.ops.compare import VolumeDiff
    from blockvault.ops.positions import Position
    from blockvault.vault import Vault


@command(
    "show",
    examples={
        "blockvault show": "The head of the current branch.",
        "blockvault show main~1": "The snapshot before the newest, and what it changed.",
        "blockvault show 'main@{10 minutes ago}'": "The state of that moment.",
    },
    shape={
        "revision": "the revision as it was given",
        "branch": "name of the branch it belongs to, or null",
        "seq": "the state just after this event",
        "snapshot": "the snapshot that this state equals, as in log, or null",
        "base": "id of the nearest snapshot at or before this state, or null",
        **history.VOLUME_SHAPE,
        "volumes[].root": "its Merkle root, or null if it was written to since the last checkpoint",
        "changes[].volume": "a volume that differs from the state before (first parent or base)",
        "changes[].size_a": "its size before, or null",
        "changes[].size_b": "its size now, or null",
        "changes[].changed": "bytes that differ, in whole blocks",
        "changes[].ranges": "number of ranges that differ",
    },
)
@click.argument("revision", metavar="[REV]", default="HEAD", shell_complete=complete.revisions)
@with_vault
def run(vault: Vault, revision: str, as_json: bool) -> None:
    """Describe one revision and what it changed.

    A snapshot is compared with its first parent; any other state with the snapshot below it.
    """
    position = vault.resolve(revision)
    snapshot = vault.get_snapshot(position.snapshot) if position.snapshot else None
    if snapshot:
        before = snapshot.parents[0] if snapshot.parents else None
    else:
        before = position.tip
    here = snapshot.id.hex() if snapshot else revision
    differences = vault.diff(before.hex(), here) if before else []
    if as_json:
        output.write_json(
            {
                "revision": revision,
                "branch": position.name,
                "seq": position.seq,
                "snapshot": history.snapshot_json(snapshot) if snapshot else None,
                "base": position.tip.hex() if position.tip else None,
                "volumes": _volumes(position),
                "changes": [changes.summary_json(item) for item in changes.real(differences)],
            }
        )
        return
    output.write("\n".join(_heading(position, snapshot, history.names_of(vault))))
    output.write()
    for line in _table(position, differences):
        output.write(f" {line}")


def _table(position: Position, differences: list[VolumeDiff]) -> list[str]:
    """A line for each volume: name, size, root, and what became of it since the state before."""
    became = {item.name: changes.words(item) for item in differences}
    rows = [
        (
            v["name"],
            output.size(v["size"]),
            (v["root"] or "-")[:SHORT_HEX],
            became.pop(v["name"], ""),
        )
        for v in _volumes(position)
    ]
    rows += [(name, "-", "-", what) for name, what in became.items()]
    return output.columns(rows, right=frozenset({1}))


def _volumes(position: Position) -> list[dict[str, Any]]:
    """The volumes; a root is known only where the state equals its last checkpoint."""
    known = position.seq == position.waypoint_seq
    return [
        volume if known else volume | {"root": None}
        for volume in history.volumes_json(position.volumes)
    ]


def _heading(position: Position, snapshot: Snapshot | None, names: history.Names) -> list[str]:
    where = f"{position.name}@{{#{position.seq}}}" if position.name else ""
    if snapshot:
        first, *rest = history.paragraph(snapshot, names)
        return [first, *([f"State:   {where}"] if where else []), *rest]
    base = f", {short(position.tip)} and later writes" if position.tip else ""
    return [click.style(f"state {where}{base}", fg="yellow")]
