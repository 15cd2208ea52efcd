"""What a volume's blocks became since its last waypoint: the tail of the log, folded.

    blocks    block number -> id          single blocks, ZERO_ID included
    cleared   sorted, disjoint [start, stop) of long zeroed runs

A block in ``blocks`` is always newer than a cleared run over it, for clearing removes the entries
below.  Long runs are kept as runs, so that zeroing a terabyte costs as much as zeroing a block.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from blockvault.ids import ID_SIZE, ZERO_ID
from blockvault.model import tree
from blockvault.model.extents import Run

LONG_RUN = 1024
"""Blocks from which a zeroed run is kept as a run instead of block by block."""


class Overlay:
    """Mutable; one writer, any number of readers without a lock (single dict operations)."""

    __slots__ = ("blocks", "cleared")

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}
        self.cleared: list[tuple[int, int]] = []

    def __len__(self) -> int:
        """Entries held: what bounds the memory and the cost of folding into the tree."""
        return len(self.blocks) + len(self.cleared)

    def write(self, first: int, ids: bytes) -> None:
        """Blocks from ``first`` on have these concatenated ids now."""
        if len(ids) == ID_SIZE:
            self.blocks[first] = ids
            return
        count = len(ids) // ID_SIZE
        self.blocks.update(
            zip(
                range(first, first + count),
                (ids[at : at + ID_SIZE] for at in range(0, len(ids), ID_SIZE)),
                strict=True,
            )
        )

    def clear(self, first: int, count: int) -> None:
        """The ``count`` blocks from ``first`` on read as zeros now."""
        stop = first + count
        if count < LONG_RUN:
            self.blocks.update(dict.fromkeys(range(first, stop), ZERO_ID))
            return
        if count < len(self.blocks):
            doomed = [block for block in range(first, stop) if block in self.blocks]
        else:
            doomed = [block for block in self.blocks if first <= block < stop]
        self.cleared = _insert(self.cleared, first, stop)
        for block in doomed:
            del self.blocks[block]

    def get(self, block: int) -> bytes | None:
        """The id of a block, or None when the tree below still speaks for it."""
        oid = self.blocks.get(block)
        if oid is None and self.cleared and _covers(self.cleared, block):
            return ZERO_ID
        return oid

    def lookup(self, first: int, stop: int) -> list[bytes | None]:
        """``get`` for a range."""
        if self.cleared:
            return [self.get(block) for block in range(first, stop)]
        if not self.blocks:
            return [None] * (stop - first)
        get = self.blocks.get
        return [get(block) for block in range(first, stop)]

    def runs(self, first: int, stop: int) -> Iterator[Run]:
        """What this overlay says of ``[first, stop)``: sorted, disjoint runs of data and zeros."""
        singles = sorted(block for block in self.blocks if first <= block < stop)
        zeros = iter([run for run in self.cleared if run[0] < stop and first < run[1]])
        long = next(zeros, None)
        at = first
        for block in [*singles, stop]:
            while long and max(at, long[0]) < block:
                yield Run(max(at, long[0]), min(block, long[1]), True)
                if long[1] > block:
                    break
                long = next(zeros, None)
            if block < stop:
                yield Run(block, block + 1, self.blocks[block] == ZERO_ID)
            at = block + 1

    def fold(self, nodes: tree.NodeSource, sink: tree.NodeSink, root: bytes, height: int) -> bytes:
        """The root of the tree below with this overlay applied; new nodes go to ``sink``."""
        return tree.update(nodes, sink, root, height, self.blocks, self.cleared)


def _covers(runs: Sequence[tuple[int, int]], block: int) -> bool:
    at = bisect_right(runs, (block, 1 << 62)) - 1
    return at >= 0 and block < runs[at][1]


def _insert(runs: list[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """Add a run to sorted disjoint ones, merged with all it touches."""
    low = bisect_left(runs, start, key=lambda run: run[1])
    high = bisect_right(runs, stop, key=lambda run: run[0])
    if low < high:
        start, stop = min(start, runs[low][0]), max(stop, runs[high - 1][1])
    return [*runs[:low], (start, stop), *runs[high:]]
