"""A batch of writes becomes rows of events and frames of objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blockvault.ids import ZERO_ID, object_id
from blockvault.model import events

if TYPE_CHECKING:
    from blockvault.pending import Batch, Settling
    from blockvault.store.frames import Frame
    from blockvault.store.gathering import ObjectWriter


class Prepared:
    """The rows of a batch, timed from ``time_us`` (0: now), how its devices settle it, and its
    frames.
    """

    def __init__(self, batch: Batch, branch: int, block_size: int, objects: ObjectWriter) -> None:
        self.time_us = _beginning(batch)
        self.rows: list[tuple[Any, ...]] = []
        self.settling: list[Settling] = []
        self._branch = branch
        self._size = block_size
        self._new: dict[bytes, bytes] = {}
        self._delta = 0
        self._rows_of(batch)
        self._new.pop(ZERO_ID, None)
        objects.add_blocks(list(self._new), list(self._new.values()))
        self.frames: list[Frame] = objects.finish()

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
        barriers = {barrier.at: barrier.time_us for barrier in batch.barriers}
        if batch.first in barriers:
            self._barrier(barriers[batch.first])
        for number, (time_us, head, offset, length, what) in enumerate(batch.entries, batch.first):
            delta = self._after(time_us)
            first = offset // size
            if isinstance(what[0], int):
                count = -(-length // size)
                self.rows.append((what[0], delta, branch, head.name, offset, length))
                self.settling.append((head.settle_clear, (first, count, what[1])))
            else:
                ids = [object_id(block) if block != zero else ZERO_ID for block in what]
                self._new.update(zip(ids, what, strict=True))
                joined = b"".join(ids)
                self.rows.append((events.WROTE, delta, branch, head.name, offset, length, joined))
                self.settling.append((head.settle_write, (first, what, joined)))
            if number + 1 in barriers:
                self._barrier(barriers[number + 1])

    def _barrier(self, time_us: int) -> None:
        self.rows.append((events.BARRIER, self._after(time_us), self._branch))

    def _after(self, time_us: int) -> int:
        """A row's time from the record's; it never goes back within a record."""
        self._delta = max(self._delta, time_us - self.time_us)
        return self._delta


def _beginning(batch: Batch) -> int:
    if batch.entries:
        return batch.entries[0][0]
    return batch.barriers[0].time_us if batch.barriers else 0
