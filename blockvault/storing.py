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
Single = tuple[int, bytes, bytes]
"""The same of a write that was one block, as ``HeadDevice.settle_singles`` takes it: number, bytes,
id."""


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
        self._zero = bytes(block_size)
        self._single: HeadDevice | None = None
        """The device of the last entry if that was one block; to ``_singles`` the next one goes."""
        self._singles: list[Single] = []
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
        barriers = {barrier.at: barrier.time_us for barrier in batch.barriers}
        if batch.first in barriers:
            self._barrier(barriers[batch.first])
        before = 0
        for number, (time_us, head, offset, length, what) in enumerate(
            batch.entries, batch.first + 1
        ):
            if time_us != before:
                before = time_us
                self._advance(time_us)
            if isinstance(what[0], int):
                self._cleared(head, offset, length, *what)
            elif len(what) == 1:
                self._wrote_one(head, offset, length, what[0])
            else:
                self._wrote(head, offset, length, what)
            if number in barriers:
                self._barrier(barriers[number])

    def _cleared(self, head: HeadDevice, offset: int, length: int, code: int, mark: bytes) -> None:
        """Zeros or a trim, which the head knows by ``mark``."""
        self.rows.append((code, self._delta, self._branch, head.name, offset, length))
        span = offset // self._size, -(-length // self._size)
        self.settling.append((head.settle_clear, (*span, mark)))
        self._single = None

    def _wrote_one(self, head: HeadDevice, offset: int, length: int, block: bytes) -> None:
        """One block, which most writes are: it is spared the steps that many need."""
        number, oid = offset // self._size, self._id(block)
        if self._single is not head:
            self._single, self._singles = head, []
            self.settling.append((head.settle_singles, (self._singles,)))
        self._singles.append((number, block, oid))
        self._placed[head].append((number, oid, block))
        self._row_of_write(head, offset, length, oid)

    def _wrote(self, head: HeadDevice, offset: int, length: int, blocks: Sequence[bytes]) -> None:
        """Several blocks side by side."""
        first, each = offset // self._size, [self._id(block) for block in blocks]
        ids = b"".join(each)
        self._placed[head] += zip(range(first, first + len(blocks)), each, blocks, strict=True)
        self.settling.append((head.settle_write, (first, blocks, ids)))
        self._single = None
        self._row_of_write(head, offset, length, ids)

    def _row_of_write(self, head: HeadDevice, offset: int, length: int, ids: bytes) -> None:
        row = events.WROTE, self._delta, self._branch, head.name, offset, length, ids
        self.rows.append(row)

    def _id(self, block: bytes) -> bytes:
        return object_id(block) if block != self._zero else ZERO_ID

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
        self._advance(time_us)
        self.rows.append((events.BARRIER, self._delta, self._branch))

    def _advance(self, time_us: int) -> None:
        """Go on to this time; a row's counts from the record's, and never goes back within it."""
        self._delta = max(self._delta, time_us - self.time_us)


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
