"""Files that are there whole or not at all, and whose those are that root makes.

What root does in somebody's vault must not lock its owner out: so all that is made there to stay,
by whom ever, belongs to the owner of the directory that it is in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""How file systems say that they have no hard links, FAT for one."""
_RETRY = 0.01


def opened(path: Path) -> int:
    """Open a file to read and write; where there is none it is made, for its owner alone."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            give(descriptor, path.parent)
            return descriptor
        with contextlib.suppress(FileNotFoundError):  # it went in between
            return os.open(path, flags)


def folder(path: Path) -> None:
    """Make a directory for its owner alone, if there is none."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        give_named(path)


def give(made: int, directory: Path) -> None:
    """Give what was made just now to the owner of this directory, if we may: if we are root."""
    owner = os.stat(directory)
    if owner.st_uid == os.geteuid():
        return
    with contextlib.suppress(OSError):
        # What was opened as a mere place (O_PATH) can be named so, but not given by its descriptor.
        os.chown(f"/proc/self/fd/{made}", owner.st_uid, owner.st_gid)


def give_named(path: Path) -> None:
    """The same for a directory or socket that has just been made, which has no descriptor yet.

    Its directory's owner may have put something else of ours under the name since.  So it has to
    look like what was made: empty, or without a second name.
    """
    with contextlib.suppress(OSError):
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(place)
            empty = stat.S_ISDIR(found.st_mode) and not os.listdir(f"/proc/self/fd/{place}")
            single = stat.S_ISSOCK(found.st_mode) and found.st_nlink == 1
            if found.st_uid == os.geteuid() and (empty or single):
                give(place, path.parent)
        finally:
            os.close(place)


@contextlib.contextmanager
def locked(directory: Path, seconds: float) -> Iterator[bool]:
    """Hold a lock on a directory; False if somebody else has it, and has it still after so long.

    Whoever may look into a directory may lock it, and for as long as he likes.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _locks(descriptor, time.monotonic() + seconds)
    finally:
        # To close it is not enough: a process that was forked meanwhile has it open as well.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _locks(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_RETRY)
        else:
            return True


def readable(descriptor: int, seconds: float = 0) -> bool:
    """Whether a read would not wait, at the latest after so many seconds.

    Of any descriptor: ``select`` refuses those from 1024 on.
    """
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(max(0.0, seconds) * 1000))


def replace(
    path: Path, data: bytes, *, mode: int = 0o600, durable: bool = False, alone: bool = False
) -> None:
    """Put a file with these bytes in the place of the one at ``path``, at once for who reads it.

    The umask applies to ``mode``.  ``durable``: the bytes are on the disk before the name is, so
    that a power cut leaves either file and not an empty one.  ``alone``: nobody else writes this
    file meanwhile.  What a killed process left half done goes, and nothing is written into what
    somebody else has put there.  ``OSError`` if that is not possible; then the old file stays, and
    nothing else.
    """
    fresh = path.with_name(f"{path.name}.{'new' if alone else os.getpid()}")
    try:
        fresh.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(fresh, flags, mode), "wb") as file:
            give(file.fileno(), path.parent)
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)  # the caller's, who knows of no other
        raise


def put(fresh: Path, place: Path) -> None:
    """Give a file the name ``place`` if nothing has it: ``FileExistsError`` otherwise.

    It may keep the name that it had as well.
    """
    try:
        os.link(fresh, place)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _put_unlinked(fresh, place)


def _put_unlinked(fresh: Path, place: Path) -> None:
    """The same on a file system without hard links: an empty file keeps the place meanwhile."""
    os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    try:
        fresh.replace(place)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
