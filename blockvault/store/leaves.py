"""Whole leaves of blocks: how long reads take what lies together, and what lies scattered.

A leaf is looked for in the file of what was decoded (``athand``), then as a run of bytes that one
hash proves (``runs``), and at last block by block, most of which are found by counting
(``scattered``).  What was decoded or put together goes to that file in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from blockvault.ids import ZERO_ID, object_id
from blockvault.store import runs, scattered
from blockvault.store.athand import AtHand
from blockvault.store.decoding import FrameReader
from blockvault.store.locating import located
from blockvault.store.runs import Leaf, Pieces, Trail
from blockvault.store.types import Store

GetPlaced = Callable[[Sequence[tuple[int, bytes]]], dict[bytes, bytes]]


class LeafReader:
    """Reads leaves, given as the ids of their blocks, from any thread; all of it is proved."""

    def __init__(self, store: Store, frames: FrameReader, at_hand: AtHand) -> None:
        self._store = store
        self._frames = frames
        self._at_hand = at_hand

    def read(
        self,
        first: int,
        leaves: Sequence[Leaf],
        size: int,
        trail: Trail,
        get_placed: GetPlaced,
    ) -> list[Pieces]:
        """See ``ObjectReader.get_leaves``; ``get_placed`` is its."""
        found = self.runs(leaves, size, trail)
        if None in found:
            again = int(trail.leaf == first + 1 and found[0] is not None)
            blocks = self._scattered(leaves[again:], found[again:], size, trail, get_placed)
            for at, leaf in enumerate(leaves):
                if found[at] is None:
                    run = b"".join([blocks[oid] for oid in leaf])
                    found[at] = [run]
                    if self._at_hand.keeps:
                        self._at_hand.keep_leaf(runs.key_of(leaf), [run], object_id(run))
        trail.leaf = first + len(leaves)
        return [pieces for pieces in found if pieces is not None]

    def runs(
        self, leaves: Sequence[Leaf], size: int, trail: Trail | None = None
    ) -> list[Pieces | None]:
        """See ``ObjectReader.get_runs``."""
        keys = [runs.key_of(leaf) for leaf in leaves]
        found = [
            runs.zeros(leaf, size) or self._at_hand.take_leaf(key)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        rest = [at for at, pieces in enumerate(found) if pieces is None]
        if rest:
            with self._store.read() as reader:
                wanted = [leaves[at] for at in rest], [keys[at] for at in rest]
                frame = partial(self._frames.get, reader)
                read = runs.read(reader, *wanted, frame, size, trail or Trail())
            for at, run in zip(rest, read, strict=True):
                if run is None:
                    continue
                found[at] = run.pieces
                if run.decoded:  # else the system has it in memory once already
                    self._at_hand.keep_leaf(keys[at], run.pieces, run.digest)
        return found

    def _scattered(
        self,
        leaves: Sequence[Leaf],
        found: Sequence[Pieces | None],
        size: int,
        trail: Trail,
        get_placed: GetPlaced,
    ) -> dict[bytes, bytes]:
        """The blocks of the leaves that were not found yet, zeros too."""
        pairs = zip(leaves, found, strict=True)
        ids = [None if pieces else oid for leaf, pieces in pairs for oid in leaf]
        with self._store.read() as reader:
            frame_of = partial(self._frames.of_size, reader, size)
            blocks, others, trail.anchor = scattered.counted(ids, trail.anchor, frame_of)
            placed = located(reader, [oid for oid in dict.fromkeys(others) if oid not in blocks])
            trail.anchor = trail.anchor or scattered.place_behind(ids, placed)
        return {ZERO_ID: bytes(size), **blocks, **get_placed(placed)}
