"""A bound on the memory that large requests of all connections take together.

A connection's own buffers are small and fixed.  A request of up to 32 MiB needs more, and a few
hundred clients at once would need more than there is; so whoever handles a large one holds that
many bytes of the budget meanwhile, and waits while there are not enough.  A single request always
fits: the budget is never smaller than the largest.

A client for which bytes are held has a deadline, however it spends the time, since others wait for
them; and a nearer one each time that it stops.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

STALL_SECONDS = 60.0
LEAST_RATE = 128 * 1024  # bytes a second beyond those seconds; a line of 1 Mbit/s is fast enough


def deadline(size: int) -> float:
    """By when a client must have sent, or taken, that many bytes that are held for it."""
    return time.monotonic() + STALL_SECONDS + size / LEAST_RATE


def latest(until: float, moved_at: float) -> float:
    """The same for one that sent or took some of them then, and nothing since."""
    return min(until, moved_at + STALL_SECONDS)


class Budget:
    """Bytes that may be held at any one time."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._changed = threading.Condition()

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._total - self._free

    def take(self, size: int) -> None:
        """Wait until ``size`` bytes are free and hold them."""
        if size > self._total:
            raise ValueError(f"{size} bytes are more than the whole budget of {self._total}")
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size

    def give(self, size: int) -> None:
        """Let go of bytes that were held."""
        with self._changed:
            self._free += size
            self._changed.notify_all()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold ``size`` bytes, if any, for a while."""
        if not size:
            yield
            return
        self.take(size)
        try:
            yield
        finally:
            self.give(size)
