"""A batch of writes becomes rows of events and frames of objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from blockvault.ids import ZERO_ID, object_id
from blockvault.model import events, tree

if TYPE_CHECKING:
    from blockvault.head import HeadDevice
    from blockvault.pending import Batch, Settling
    from blockvault.store.gathering import ObjectWriter


Placed = tuple[int, bytes, bytes]
"""A block's number on its volume, its id, and its bytes."""


class Prepared:
    """The rows of a batch, timed from ``time_us`` (0: now), and how its devices settle it.

    Its blocks go to ``objects``, which has frames of them when the batch is stored.
    """

    def __init__(self, batch: Batch, branch: int, block_size: int, objects: ObjectWriter) -> None:
        self.time_us = _beginning(batch)
        self.rows: list[tuple[Any, ...]] = []
        self.settling: list[Settling] = []
        self._branch = branch
        self._size = block_size
        self._placed: defaultdict[HeadDevice, list[Placed]] = defaultdict(list)
        self._delta = 0
        self._rows_of(batch)
        self._collect(objects)

    def end_with_barrier(self) -> None:
        """A flush ends here, if none does already."""
        if not self.ends_with_barrier:
            self.rows.append((events.BARRIER, self._delta, self._branch))

    @property
    def ends_with_barrier(self) -> bool:
        return bool(self.rows) and self.rows[-1][0] == events.BARRIER

    def settle(self) -> None:
        """Tell the devices that all is stored."""
        for settle, arguments in self.settling:
            settle(*arguments)

    def _rows_of(self, batch: Batch) -> None:
        size, branch = self._size, self._branch
        zero = bytes(size)
        row, settle = self.rows.append, self.settling.append
        barriers = {barrier.at: barrier.time_us for barrier in batch.barriers}
        if batch.first in barriers:
            self._barrier(barriers[batch.first])
        before = delta = 0
        single: HeadDevice | None = None
        singles: list[tuple[int, bytes, bytes]] = []
        for number, (time_us, head, offset, length, what) in enumerate(batch.entries, batch.first):
            if time_us != before:
                before, delta = time_us, self._after(time_us)
            first = offset // size
            if isinstance(what[0], int):
                count = -(-length // size)
                row((what[0], delta, branch, head.name, offset, length))
                single = None
                settle((head.settle_clear, (first, count, what[1])))
            else:
                # One block is what most writes are: it is spared the steps that many need.
                if len(what) == 1:
                    (block,) = what
                    ids = object_id(block) if block != zero else ZERO_ID
                    if single is not head:
                        single, singles = head, []
                        placed = self._placed[head]
                        settle((head.settle_singles, (singles,)))
                    singles.append((first, block, ids))
                    placed.append((first, ids, block))
                else:
                    each = [object_id(block) if block != zero else ZERO_ID for block in what]
                    numbers = range(first, first + len(what))
                    self._placed[head] += zip(numbers, each, what, strict=True)
                    ids = b"".join(each)
                    single = None
                    settle((head.settle_write, (first, what, ids)))
                row((events.WROTE, delta, branch, head.name, offset, length, ids))
            if number + 1 in barriers:
                self._barrier(barriers[number + 1])
                delta = self._delta

    def _collect(self, objects: ObjectWriter) -> None:
        """Give the blocks to the frames as they lie on the disk, not as they were written.

        Who reads the disk from end to end then comes to each frame once, not for each block of it.
        """
        for head, placed in self._placed.items():
            placed.sort(key=itemgetter(0))
            objects.add_blocks([oid for _, oid, _ in placed], [block for _, _, block in placed])
            runs = dict(_whole_leaves(placed))
            if runs:
                self.settling.append((head.settle_runs, (runs,)))
        self._placed.clear()

    def _barrier(self, time_us: int) -> None:
        self.rows.append((events.BARRIER, self._after(time_us), self._branch))

    def _after(self, time_us: int) -> int:
        """A row's time from the record's; it never goes back within a record."""
        self._delta = max(self._delta, time_us - self.time_us)
        return self._delta


def _whole_leaves(placed: Sequence[Placed]) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    """Number, id and hash of the run (``store.runs``) of each leaf whose blocks are all there."""
    last = placed[tree.FANOUT - 1 :]
    for at, ((number, _, _), (end, _, _)) in enumerate(zip(placed, last, strict=False)):
        if number % tree.FANOUT or end != number + tree.FANOUT - 1:
            continue
        numbers, ids, blocks = zip(*placed[at : at + tree.FANOUT], strict=True)
        # A block that was written twice may stand where another one is missing.
        if numbers == tuple(range(number, number + tree.FANOUT)):
            digest = blake3(b"".join(blocks)).digest()
            yield number // tree.FANOUT, (object_id(b"".join(ids)), digest)


def _beginning(batch: Batch) -> int:
    if batch.entries:
        return batch.entries[0][0]
    return batch.barriers[0].time_us if batch.barriers else 0
