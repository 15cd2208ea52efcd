"""The state at a position: roots of the last waypoint, and the overlay of what came after.

The overlay is replayed from the records that the trail lists for the branch, a bounded number of
blocks since the session checkpoints; so opening a moment of the past costs the same however old
the vault is and however much was written to other branches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockvault.errors import Damaged, NotFound
from blockvault.model import events, projections, tree
from blockvault.model.overlay import Overlay, replay
from blockvault.model.rows import unpack_rows
from blockvault.model.snapshot import Snapshot, Volume

if TYPE_CHECKING:
    from blockvault.ops.positions import Position
    from blockvault.store.frames import Frame
    from blockvault.store.types import Reader
    from blockvault.vault import Vault


def overlays(vault: Vault, position: Position) -> dict[str, Overlay]:
    """What each volume became between the position's waypoint and the position.

    ``NotFound`` if that was pruned since the position was resolved.
    """
    found: dict[str, Overlay] = {}
    if position.seq == position.waypoint_seq:
        return found
    for first_seq in _records(vault, position):
        with vault.read() as reader:
            record = reader.record(first_seq)
        if record is None:
            raise Damaged(f"the log has no record of event {first_seq}", kind="broken-chain")
        rows = unpack_rows(record.payload)
        low = max(0, position.waypoint_seq + 1 - first_seq)
        wanted = rows[low : position.seq + 1 - first_seq]
        replay(found, wanted, position.branch, vault.options.block_size)
    with vault.read() as reader:
        check_kept(reader, position)  # without its trail it would be an older state
    return found


def check_kept(reader: Reader, position: Position) -> None:
    """``NotFound`` if the state was pruned since the position was resolved."""
    if position.snapshot and projections.recorded(reader, position.snapshot):
        return
    waypoint = projections.waypoint(reader, position.branch, position.waypoint_seq)
    cut = projections.cut(reader, position.branch)
    if waypoint is None or (position.waypoint_seq < position.seq < (cut.seq if cut else 0)):
        raise NotFound(f"'{position.text}' was pruned meanwhile", kind="pruned")


def _records(vault: Vault, position: Position) -> list[int]:
    """First events of the records that moved the branch after its waypoint, in order."""
    records = []
    with vault.read() as reader:
        for first_seq, row in projections.trail(reader, position.branch, position.seq):
            if row.last_seq <= position.waypoint_seq:
                break
            records.append(first_seq)
    return records[::-1]


def materialized(vault: Vault, position: Position) -> tuple[tuple[Volume, ...], list[Frame]]:
    """The position's volumes as plain trees, and the frames of nodes not stored yet."""
    objects = vault.new_objects()
    return folded(vault, position, objects), objects.finish()


def folded(vault: Vault, position: Position, sink: tree.NodeSink) -> tuple[Volume, ...]:
    """The position's volumes with their overlays folded in; new nodes go to ``sink``."""
    upper = overlays(vault, position)
    size = vault.options.block_size
    return tuple(
        volume._replace(
            root=upper[volume.name].fold(
                vault.objects, sink, volume.root, tree.depth(tree.blocks_in(volume.size, size))
            )
        )
        if volume.name in upper
        else volume
        for volume in position.volumes
    )


def freeze(vault: Vault, position: Position, message: str) -> bytes:
    """Store a snapshot of a position that is none, outside of its branch's line; return its id.

    It becomes reachable with the event that names it, such as a tag.
    """
    volumes, frames = materialized(vault, position)
    with vault.read() as reader:
        last = reader.last().time_us
    snapshot = Snapshot(
        parents=(position.tip,) if position.tip else (),
        volumes=volumes,
        message=message,
        author=vault.author,
        time_us=max(events.now_us(), last),  # as the log's: a clock may have gone back
        seq=position.seq,
    )
    objects = vault.new_objects()
    objects.add_node(snapshot.encode())
    with vault.transaction() as transaction:
        transaction.add_frames([*frames, *objects.finish()])
    return snapshot.id
