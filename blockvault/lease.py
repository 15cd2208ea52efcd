"""The right to write one branch, held by one process at a time.

A lease is an exclusive ``flock`` on a file of its own, so the kernel gives it back the moment its
holder dies, however it dies.  The file's text only says who holds it, for the message that a
second writer gets; it is never trusted for the decision.

A forked child has no part in the leases of its parent: it neither keeps nor ends them.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from blockvault.errors import Busy
from blockvault.store import filesystem
from blockvault.store.faults import from_os

_DIRECTORY = "leases"

_held: set[Lease] = set()


class Lease:
    """Held from construction to ``release``; ``Busy`` names the holder of a taken one."""

    def __init__(self, vault: Path, branch: int, name: str, holder: str) -> None:
        directory = vault / _DIRECTORY
        self.path = directory / str(branch)
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise from_os(error, self.path) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(self._fd, 4096).decode(errors="replace").strip() or "another process"
            os.close(self._fd)
            raise Busy(
                f"branch '{name}' is being written by {other}; "
                "nothing was changed, try again when it is done",
                kind="branch-busy",
            ) from None
        _held.add(self)
        self._say(f"{holder} (process {os.getpid()})\n")

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


def _after_fork() -> None:
    for lease in tuple(_held):
        lease.disown()


os.register_at_fork(after_in_child=_after_fork)
