"""Directories that end with the process that made them, and what a killed one left of them.

Each is locked for as long as it is in use, and the kernel gives the lock back however its process
ends.  So a directory that nobody has locked is left over, and whoever has made it may remove it.

That of root in somebody's vault stays root's: programs write there by name, and the owner of the
vault could put a link in the place of what they write to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new directory that is there while the context lasts."""
    path, lock = _made(parent, prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def clean(parent: Path, prefix: str) -> list[Path]:
    """Remove the directories that killed processes of ours left; return those of other users."""
    foreign = []
    for path in sorted(parent.glob(f"{prefix}*")):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.geteuid():
                foreign.append(path)
            elif (lock := _locked(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)
    return foreign


def _made(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = _locked(path)
        if lock is not None:
            return path, lock
        # Somebody cleaned up in the moment before it was locked.


def _locked(path: Path) -> int | None:
    """The directory's descriptor, which holds the lock; None if it is in use, or gone."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.lstat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None
