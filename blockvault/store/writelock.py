"""The writers' queue: who may begin a write transaction, with a time limit.

LMDB's own writer mutex waits without limit and does not hear Ctrl-C until it has the lock; a
stopped process would hang every other.  So writers first take this lock: a mutex between threads,
then ``flock`` on the head file between processes.  Whoever holds both finds LMDB's mutex free.
``flock`` ends with its process, so a killed writer holds up nobody.

Whoever waits for the ``flock`` holds a shared lock on a byte of that file meanwhile, for the holder
to see.  The list of waiters that the system keeps, ``/proc/locks``, tells nothing of other
containers, and to read it can take 3 ms: all who lock any file anywhere are halted for that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time

from blockvault.errors import Busy
from blockvault.store import filesystem

TIMEOUT = 60.0
_POLL = 0.01

_WAITERS_BYTE = 1 << 62
"""Far behind the end of the file: the lock needs a place, not a byte that is there."""
_BYTE_LOCK = struct.Struct("hhqqi4x")
"""``struct flock`` of 64-bit Linux: type, whence, start, length, and no process."""

_waits: set[int] = set()
"""Descriptors that wait, or waited and hold the lock now."""


class WriteLock:
    """Exclusive between the threads of this process and all processes with the same file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._holding = descriptor
        self._mutex = threading.Lock()
        self._owner: int | None = None
        self._queued: set[int] = set()  # threads of this process, the holder not among them

    def acquire(self, timeout: float = TIMEOUT) -> None:
        """``Busy`` after ``timeout`` seconds; RuntimeError if this thread is already writing."""
        if self.held_by_me():
            raise RuntimeError("write transactions do not nest: this thread is already writing")
        deadline = time.monotonic() + timeout
        self._queued.add(threading.get_ident())
        try:
            if not self._mutex.acquire(timeout=timeout):
                raise _busy("another thread", timeout)
        finally:
            self._queued.discard(threading.get_ident())
        try:
            self._holding = self._lock_file(deadline, timeout)
            self._owner = threading.get_ident()
        except BaseException:
            self._mutex.release()
            raise

    def try_acquire(self, timeout: float) -> bool:
        """Like ``acquire``, but False instead of ``Busy``."""
        try:
            self.acquire(timeout)
        except Busy:
            return False
        return True

    def release(self) -> None:
        self._owner = None
        if self._holding == self._descriptor:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        else:
            _close(self._holding)
        self._mutex.release()

    def held_by_me(self) -> bool:
        return self._owner == threading.get_ident()

    def wanted(self) -> bool:
        """Whether anybody waits for the lock that the caller holds; some microseconds."""
        return bool(self._queued) or _lock_of_byte(self._descriptor) != fcntl.F_UNLCK

    def _lock_file(self, deadline: float, timeout: float) -> int:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._descriptor
        except BlockingIOError:
            pass
        # flock has no time limit, and polling starves beside a busy writer: a helper thread
        # queues in the kernel.
        try:
            waiting = _Waiting(self._descriptor)
        except RuntimeError:  # no more threads
            return self._poll(deadline, timeout)
        try:
            waiting.done.wait(max(0.0, deadline - time.monotonic()))
        except BaseException:
            # An interrupt may come at the moment at which the lock is had.
            if (taken := waiting.finish()) is not None:
                _close(taken)
            raise
        taken = waiting.finish()
        if taken is None:
            raise _busy("another process", timeout)
        return taken

    def _poll(self, deadline: float, timeout: float) -> int:
        """The same without a thread, as well as that goes: the holder sees it wait all the same."""
        _lock_byte(self._descriptor, fcntl.F_RDLCK)
        try:
            while time.monotonic() < deadline:
                time.sleep(_POLL)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return self._descriptor
        finally:
            _lock_byte(self._descriptor, fcntl.F_UNLCK)
        raise _busy("another process", timeout)


class _Waiting:
    """One blocking flock, in a thread and on an open file of its own, that may be given up.

    Its own open file, because locks belong to open files: a given-up wait that ends late must not
    unlock what a later writer of this process has locked meanwhile.
    """

    def __init__(self, descriptor: int) -> None:
        self.done = threading.Event()
        self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        _waits.add(self._descriptor)
        self._guard = threading.Lock()
        self._given_up = False
        _lock_byte(self._descriptor, fcntl.F_RDLCK)
        try:
            threading.Thread(target=self._run, name="vault-write-queue", daemon=True).start()
        except RuntimeError:
            _close(self._descriptor)  # or the holder would see it wait for ever
            raise

    def _run(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        _lock_byte(self._descriptor, fcntl.F_UNLCK)
        with self._guard:
            if self._given_up:
                _close(self._descriptor)
            self.done.set()

    def finish(self) -> int | None:
        """The descriptor that holds the lock, or None: then it is let go as soon as it is got."""
        with self._guard:
            self._given_up = not self.done.is_set()
            return None if self._given_up else self._descriptor


def _close(descriptor: int) -> None:
    _waits.discard(descriptor)
    filesystem.close_locked(descriptor)


def _lock_byte(descriptor: int, kind: int) -> None:
    """Lock or unlock the waiters' byte, for this open file."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _byte_lock(kind))


def _lock_of_byte(descriptor: int) -> int:
    """How other open files have locked the waiters' byte."""
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _byte_lock(fcntl.F_WRLCK))
    return int(_BYTE_LOCK.unpack(found)[0])


def _byte_lock(kind: int) -> bytes:
    return _BYTE_LOCK.pack(kind, os.SEEK_SET, _WAITERS_BYTE, 1, 0)


def _busy(who: str, timeout: float) -> Busy:
    return Busy(
        f"{who} has been writing to this vault for more than {timeout:.0f} seconds; "
        "nothing was changed. Try again when it is done.",
        kind="write-locked",
    )


def _after_fork() -> None:
    """A child that outlives its parent must not keep the parent's lock."""
    for descriptor in _waits:
        os.close(descriptor)
    _waits.clear()


os.register_at_fork(after_in_child=_after_fork)
