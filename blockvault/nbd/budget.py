"""A bound on the memory that large requests of all connections take together.

A connection's own buffers are small and fixed.  A request of up to 32 MiB needs more, and a few
hundred clients at once would need more than there is; so whoever handles a large one holds that
many bytes of the budget meanwhile, and waits while there are not enough.  A single request always
fits: the budget is never smaller than the largest.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


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
