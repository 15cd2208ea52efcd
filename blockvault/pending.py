"""Writes that a session took and has not stored yet: what a disk calls its volatile cache.

Every entry, a write or a clear, has a number, counted from the session's beginning.  Entries leave
at the front, in batches, on their way into one transaction each; a batch that fails comes back.  A
*barrier* stands behind an entry when a flush was promised there by the journal, before the tables
have it.

    stored ≤ base ≤ journaled ≤ taken      base: the first that is in no batch
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from blockvault.head import HeadDevice

TRANSACTION_BYTES = 16 << 20
"""Bytes of writes that one transaction stores at most, whatever is pending."""

Entry = tuple[int, "HeadDevice", int, int, Any]
"""time_us, device, offset, length, and the blocks written or ``(event code, mark)`` of a clear."""
Settling = tuple[Callable[..., None], tuple[Any, ...]]
"""What a device has to do once a write of its is stored, and with which arguments."""


class Barrier(NamedTuple):
    """A flush that was promised when the entries before number ``at`` had been taken."""

    at: int
    time_us: int


class Batch(NamedTuple):
    """Entries on their way into one transaction, ``first`` being the number of the first."""

    first: int
    entries: list[Entry]
    size: int
    barriers: list[Barrier]

    @property
    def stop(self) -> int:
        return self.first + len(self.entries)


class Pending:
    """The entries in order.  ``mutex`` protects all of it; who appends holds it already."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.room = threading.Condition(self.mutex)
        """Told when a batch has been stored."""
        self.entries: list[Entry] = []
        self.base = 0
        self.stored = 0
        self.size = 0
        self._barriers: list[Barrier] = []

    @property
    def taken(self) -> int:
        """The number that the next entry will have."""
        return self.base + len(self.entries)

    def since(self, number: int) -> list[Entry]:
        """The entries from ``number`` on, which no batch has."""
        return self.entries[number - self.base :]

    def add_barrier(self, time_us: int) -> None:
        """A flush covers all that was taken so far."""
        if not self._barriers or self._barriers[-1].at != self.taken:
            self._barriers.append(Barrier(self.taken, time_us))

    def take(self, stop: int) -> Batch:
        """The first entries, those before ``stop`` at most, that one transaction stores.

        Bounded, so that neither the log record nor what an opening replays outgrows the format.
        """
        with self.mutex:
            count = size = 0
            for entry in self.entries[: max(0, stop - self.base)]:
                held = _held(entry)
                if count and size + held > TRANSACTION_BYTES:
                    break
                size += held
                count += 1
            first, entries = self.base, self.entries[:count]
            del self.entries[:count]
            self.base += count
            barriers = [barrier for barrier in self._barriers if barrier.at <= self.base]
            del self._barriers[: len(barriers)]
            return Batch(first, entries, size, barriers)

    def give_back(self, batch: Batch) -> None:
        """A batch was not stored: its entries are the first again."""
        with self.mutex:
            self.entries[:0] = batch.entries
            self._barriers[:0] = batch.barriers
            self.base = batch.first

    def done(self, batch: Batch) -> None:
        """A batch was stored."""
        with self.mutex:
            self.size -= batch.size
            self.stored = batch.stop
            self.room.notify_all()


def _held(entry: Entry) -> int:
    """The bytes that were counted for an entry; a short clear counts as the blocks it clears."""
    _, device, _, length, what = entry
    if isinstance(what[0], int):
        return -(-length // device.block_size) * len(what[1])
    return len(what) * device.block_size
