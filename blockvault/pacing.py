"""How fast writers may go while the disk does not keep up with them.

A batch of writes leaves memory all at once, when it is durable.  Writers that run on until memory
is full then stand still for as long as a batch takes, a third of a second at times, and so do the
programs of the guest.  So from half of the limit on each write is held back a little: at three
quarters by the time that the disk took lately for as many bytes, with more room left by less::

    pending   0 ───────────── 1/2 ───────────── 3/4 ───────────── limit
    writers   as they come         slower and       as fast as       slower still, then stopped
                                   slower           the disk

While trees are folded nothing is stored at all, and what could have been meanwhile counts as
pending too.  Else writers would fill the rest of memory at the speed of the disk, and stand still
until the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blockvault.pending import TRANSACTION_BYTES

MEASURED_BYTES = 4 << 20
"""A batch smaller than this tells more of the disk's latency than of its speed."""
MEMORY_BYTES = 64 << 20
"""The speed is that of the last bytes, about so many."""
LEAST_SECONDS, MOST_SECONDS = 0.001, 0.05
"""What is worth a sleep (less is added to what follows), and the longest one."""


class Pace:
    """The speed of one session's commits, and what is left of it for the next writer.

    ``began`` and ``stored`` are told by whoever commits, ``hold`` is asked from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._since = self._changed = clock()
        """When the batch that is on its way was begun, or the one before it was stored; and since
        when things have been as they are."""
        self._standing = False
        """Whether no batch is on its way."""
        self._bytes = self._seconds = 0.0
        self._free_at = 0.0
        """When the writers that were held back so far may all have gone on."""

    def began(self) -> None:
        """Commits begin; before that nothing was to be done."""
        self._since = self._changed = self._clock()

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Inside of the block nothing is stored, whatever is pending."""
        self._changed, self._standing = self._clock(), True
        try:
            yield
        finally:
            self._changed, self._standing = self._clock(), False

    def stored(self, count: int) -> None:
        """A batch of ``count`` bytes is durable, and the next one is on its way."""
        now = self._clock()
        with self._guard:
            if count >= MEASURED_BYTES:
                kept = max(0.0, 1 - count / MEMORY_BYTES)
                self._bytes = kept * self._bytes + count
                self._seconds = kept * self._seconds + now - self._since
            self._since = self._changed = now

    def hold(self, count: int, pending: int, limit: int) -> float:
        """Seconds that the writer of ``count`` bytes is to wait, so many being pending."""
        if pending <= limit / 2 or not self._bytes:
            return 0.0
        now = self._clock()
        with self._guard:
            each = self._seconds / self._bytes
            passed = (now - self._changed) / each if each else 0.0
            # Pending falls a batch at a time; what follows from it must not.
            done = -min(passed, limit / 2) if self._standing else min(passed, TRANSACTION_BYTES)
            slower = 4 * (pending - done) / limit - 2
            if slower <= 0:
                return 0.0
            self._free_at = max(now, self._free_at) + count * each * slower
            self._free_at = min(self._free_at, now + MOST_SECONDS)
            held = self._free_at - now
            return held if held >= LEAST_SECONDS else 0.0
