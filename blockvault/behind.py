"""The thread that commits behind a session's back, so that a flush finds little left to do.

It begins when much is pending, or when a flush was promised by the journal alone, and ends when
neither is so.  What it cannot store is pending again: the next write that needs room, or the next
flush, tries again and tells its caller.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from blockvault import journaling
from blockvault.pending import Pending

COMMIT_BYTES = 8 << 20
"""Pending bytes that are not left to the next flush."""


class Behind:
    """``journaled`` is the number behind the last entry that the journal has; ``commit`` stores
    the entries before a number."""

    def __init__(
        self, pending: Pending, journaled: Callable[[], int], commit: Callable[[int], None]
    ) -> None:
        self._pending = pending
        self._journaled = journaled
        self._commit = commit
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()

    @contextmanager
    def kept_off(self) -> Iterator[None]:
        """Nothing is committed behind the back of who stores what a killed session left."""
        self._thread = threading.current_thread()
        yield
        self._hurry.clear()
        self._thread = None

    def took(self) -> None:
        """More is pending.  Called under the mutex."""
        if self._pending.size >= COMMIT_BYTES:
            self._hurry.set()
            self.begin()

    def begin(self) -> None:
        """Commit: now if there is hurry, else after a moment.  Called under the mutex."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="commit")
            # Where no thread can be had, who needs room commits, or the next flush.
            with suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def relieved(self, limit: int) -> bool:
        """Wait until less than ``limit`` is pending; False if nobody commits, or it failed.

        A writer that committed itself would wait for all that is pending.
        """
        with self._pending.mutex:
            while self._pending.size >= limit and self._thread is not None:
                self._hurry.set()
                self._pending.room.wait()
            return self._pending.size < limit

    def end(self) -> None:
        """Do what is left at once, and return when it is done."""
        thread = self._thread
        if thread is not None:
            self._hurry.set()
            thread.join()

    def _run(self) -> None:
        failed = False
        while True:
            self._hurry.wait(journaling.SETTLE_SECONDS)
            try:
                self._commit(self._ready())
            except Exception:
                failed = True
            with self._pending.mutex:
                if self._pending.size >= COMMIT_BYTES and not failed:
                    continue
                self._hurry.clear()
                self._pending.room.notify_all()  # who still waits is in a hurry again
                if failed or self._journaled() <= self._pending.stored:
                    self._thread = None
                    return

    def _ready(self) -> int:
        """Up to where a commit goes that nobody waits for.

        Not beyond the journal, if that has anything: a flush would wait for the rest to be stored.
        """
        with self._pending.mutex:
            journaled = self._journaled()
            return journaled if journaled > self._pending.base else self._pending.taken
