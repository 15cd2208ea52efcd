"""What a volume's blocks became since its last waypoint: the tail of the log, folded.

    blocks    block number -> id          single blocks, ZERO_ID included
    cleared   sorted, disjoint [start, stop) of long zeroed runs
    leaves    numbers of the tree's leaves in which blocks were set: what folding has to write anew

A block in ``blocks`` is always newer than a cleared run over it, for clearing removes the entries
below.  Long runs are kept as runs, so that zeroing a terabyte costs as much as zeroing a block.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from blockvault.ids import ID_SIZE, ZERO_ID
from blockvault.model import tree
from blockvault.model.events import BARRIER, DATA_CODES, WROTE
from blockvault.model.extents import Run, clipped, overlaid
from blockvault.model.rows import Row
from blockvault.model.update import update

LONG_RUN = 1024
"""Blocks from which a zeroed run is kept as a run instead of block by block."""


class Overlay:
    """Mutable; one writer, any number of readers without a lock (single dict operations)."""

    __slots__ = ("blocks", "cleared", "leaves")

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}
        self.cleared: list[tuple[int, int]] = []
        self.leaves: set[int] = set()

    def __len__(self) -> int:
        """Entries held: what bounds the memory and the cost of opening."""
        return len(self.blocks) + len(self.cleared)

    def write(self, first: int, ids: bytes) -> None:
        """Blocks from ``first`` on have these concatenated ids now."""
        if len(ids) == ID_SIZE:
            self.blocks[first] = ids
            self.leaves.add(first >> tree.BITS)
            return
        count = len(ids) // ID_SIZE
        self.leaves.update(_leaves(first, first + count))
        self.blocks.update(
            zip(
                range(first, first + count),
                (ids[at : at + ID_SIZE] for at in range(0, len(ids), ID_SIZE)),
                strict=True,
            )
        )

    def write_singles(self, numbers: Sequence[int], ids: Sequence[bytes]) -> None:
        """``write`` for single blocks, in order."""
        self.blocks.update(zip(numbers, ids, strict=True))
        self.leaves.update([number >> tree.BITS for number in numbers])

    def clear(self, first: int, count: int) -> None:
        """The ``count`` blocks from ``first`` on read as zeros now."""
        stop = first + count
        if count < LONG_RUN:
            self.blocks.update(dict.fromkeys(range(first, stop), ZERO_ID))
            self.leaves.update(_leaves(first, stop))
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

    def touches(self, first: int, stop: int) -> bool:
        """False if the tree below speaks for all of ``[first, stop)``; True says nothing."""
        return _overlaps(self.cleared, first, stop) or not self.leaves.isdisjoint(
            _leaves(first, stop)
        )

    def lookup(self, first: int, stop: int) -> list[bytes | None]:
        """``get`` for a range."""
        if not self.blocks and not self.cleared:
            return [None] * (stop - first)
        get = self.blocks.get
        found = [get(block) for block in range(first, stop)]
        # Asked for after the blocks: ``clear`` sets the run before it removes the blocks below.
        cleared = self.cleared
        if not _overlaps(cleared, first, stop):
            return found
        return [
            ZERO_ID if oid is None and _covers(cleared, block) else oid
            for block, oid in enumerate(found, first)
        ]

    def runs(self, first: int, stop: int) -> Iterator[Run]:
        """What this overlay says of ``[first, stop)``: sorted, disjoint runs of data and zeros."""
        # Copied in one step each, for a writer may change them while the caller draws runs.
        cleared = self.cleared
        blocks = self.blocks.copy()
        if stop - first < len(blocks):
            numbers = [block for block in range(first, stop) if block in blocks]
        else:
            numbers = sorted(block for block in blocks if first <= block < stop)
        singles = (Run(block, block + 1, blocks[block] == ZERO_ID) for block in numbers)
        low = bisect_right(cleared, first, key=lambda run: run[1])
        high = bisect_left(cleared, stop, key=lambda run: run[0])
        zeros = [Run(start, end, True) for start, end in cleared[low:high]]
        return overlaid(clipped(zeros, first, stop), singles)

    def fold(self, nodes: tree.NodeSource, sink: tree.NodeSink, root: bytes, height: int) -> bytes:
        """The root of the tree below with this overlay applied; new nodes go to ``sink``."""
        return update(nodes, sink, root, height, self.blocks, self.cleared)


def replay(overlays: dict[str, Overlay], rows: Iterable[Row], branch: int, block_size: int) -> None:
    """Apply the data rows of ``branch``, in the order of the log, to its volumes' overlays.

    Other rows are passed over: the caller starts behind a waypoint and stops where it wants.
    """
    for row in rows:
        code = row[0]
        if row[2] != branch or code not in DATA_CODES or code == BARRIER:
            continue
        overlay = overlays.get(row[3])
        if overlay is None:
            overlay = overlays[row[3]] = Overlay()
        first = row[4] // block_size
        if code == WROTE:
            overlay.write(first, row[6])
        else:
            overlay.clear(first, -(-(row[4] + row[5]) // block_size) - first)


def _leaves(first: int, stop: int) -> range:
    return range(first >> tree.BITS, ((stop - 1) >> tree.BITS) + 1)


def _overlaps(runs: Sequence[tuple[int, int]], first: int, stop: int) -> bool:
    at = bisect_right(runs, first, key=lambda run: run[1])
    return at < len(runs) and runs[at][0] < stop


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
