"""The right to write one branch, held by one process at a time.

A lease is an exclusive ``flock`` on a file of its own, so the kernel gives it back the moment its
holder dies, however it dies.  The file's text only says who holds it, for the message that a
second writer gets; it is never trusted for the decision.

A forked child has no part in the leases of its parent: it neither keeps nor ends them.

A holder may start a process that goes on with the branch when the holder dies: the QEMU of a
machine.  That one has another file open, which is locked in the same way.  As long as it lives,
nobody gets the lease but a ``successor`` of the dead holder.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blockvault import files
from blockvault.errors import Busy
from blockvault.store import filesystem
from blockvault.store.faults import from_os

_DIRECTORY = "leases"
RECOVERY = "the recovery of its last writes"
"""A holder that has the branch for a moment only: whoever else wants that waits for it."""
PATIENCE = 10.0
"""Seconds for which one waits."""
_RETRY = 0.02

_held: set[Lease] = set()


class Lease:
    """Held from construction to ``release``; ``Busy`` names the holder of a taken one.

    A ``successor`` gets it too while it is ``kept``.
    """

    def __init__(
        self, vault: Path, branch: int, name: str, holder: str, *, successor: bool = False
    ) -> None:
        directory = vault / _DIRECTORY
        self.path = directory / str(branch)
        self._keep = directory / f"{branch}.keep"
        try:
            files.folder(directory)
            self._fd = files.opened(self.path)
        except OSError as error:
            raise from_os(error, self.path) from None
        try:
            other = self._lock(patient=holder != RECOVERY)
            if other is not None:
                raise Busy(
                    f"branch '{name}' is being written by {other or 'another process'}; "
                    "nothing was changed, try again when it is done",
                    kind="branch-busy",
                )
            if not successor and self.kept:
                raise _kept_for_its_machine(name)
        except BaseException:
            filesystem.close_locked(self._fd)
            raise
        _held.add(self)
        self._say(f"{holder} (process {os.getpid()})\n")

    def _lock(self, *, patient: bool) -> str | None:
        """None once it is locked, else what its holder says; a recovery is waited for."""
        deadline = time.monotonic() + (PATIENCE if patient else 0)
        passing = False
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return None
            other = os.pread(self._fd, 4096, 0).decode(errors="replace").strip()
            # Just before its end a recovery says nothing any more.
            passing = other.startswith(RECOVERY) or (passing and not other)
            if not passing or time.monotonic() >= deadline:
                return other
            time.sleep(_RETRY)

    @property
    def kept(self) -> bool:
        """Whether a process lives that an earlier holder has started, so that nobody else had the
        lease since.  Only who has the lease tries it, so nobody takes a trial for a process.
        """
        try:
            fd = os.open(self._keep, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise from_os(error, self._keep) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            filesystem.close_locked(fd)
        return False

    @contextmanager
    def keep(self) -> Iterator[int]:
        """A file for a process that is started inside of the block and has it open until it ends:
        the lease is kept for its ``successor`` for so long.
        """
        try:
            fd = files.opened(self._keep)
        except OSError as error:
            raise from_os(error, self._keep) from None
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(
                    f"a process that was started before has {self._keep} open still; nothing was "
                    "changed, try again when it has ended",
                    kind="branch-busy",
                ) from None
            yield fd
        finally:
            os.close(fd)

    def release(self) -> None:
        """Give the branch back.  The file stays: removing it would race with the next holder."""
        if self._fd >= 0:
            self._say("")
            _held.discard(self)
            filesystem.close_locked(self._fd)
            self._fd = -1

    def disown(self) -> None:
        """In a forked child: it is the parent's."""
        _held.discard(self)
        os.close(self._fd)
        self._fd = -1

    def _say(self, text: str) -> None:
        """Write who holds the lease; on a full disk it is held all the same, by nobody known."""
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text.encode(), 0)


def _kept_for_its_machine(name: str) -> Busy:
    return Busy(
        f"branch '{name}' is kept for its machine: either that is going back to another state at "
        "this moment, or its guest lost its supervisor; nothing was changed. Try again; if it "
        f"stays so, 'blockvault vm start {name}' takes the guest over, "
        f"'blockvault vm stop {name} --force' switches it off",
        kind="branch-busy",
    )


def _after_fork() -> None:
    for lease in tuple(_held):
        lease.disown()


os.register_at_fork(after_in_child=_after_fork)
