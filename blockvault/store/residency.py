"""Keeping memory that is not needed from counting as this process's for ever.

LMDB maps the data file, and every page that a process touched stays mapped into it, with a dozen
neighbours that the kernel maps along: an export of a large volume would seem to take as much memory
as the volume is long.  The pages belong to the system's cache and stay there; dropping them here
only means that touching one again asks the cache for it.  The map is shared and backed by the file,
so nothing can be lost.

How much is mapped follows from what was looked up only by guess, so the guess says when to ask the
kernel, and the kernel says whether there is anything to drop.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from io import FileIO
from pathlib import Path

from blockvault.libc import libc

LIMIT = 48 << 20
"""Bytes of files that may be mapped into the process, programs and libraries too, unless it says
otherwise (``allow``)."""
LOOK_EVERY = 2 << 20
"""Bytes that were read, by guess, between two looks at what is mapped."""
A_LOOKUP = 32 << 10
"""Bytes that finding one object maps: a page of the index or a frame, and some neighbours."""

LARGE = 1 << 29
"""Bytes of a file in which hardly two of some hundred look-ups meet on a page."""
_AT_ONCE, _AT_ONCE_IN_LARGE = 512, 16
_A_LOOKUP_IN_LARGE = 128 << 10
"""What finding one object maps there when the map was dropped a moment ago, seen up to 400 KiB."""

_MAPS = Path("/proc/self/maps")
_DONT_NEED = 4
_SHARED = 2
"""Which number of ``statm`` tells the pages that belong to files (``proc(5)``)."""

_allowed = LIMIT


def allow(count: int) -> None:
    """Let so many bytes of files be mapped into this process from now on."""
    global _allowed
    _allowed = count


class Residency:
    """Counts what is read of one mapped file, and drops it when it is too much.

    Until ``close`` the file stays mapped where it is.
    """

    def __init__(self, path: Path, span: int) -> None:
        """``span`` is how many bytes of addresses the file is mapped to."""
        self._path = path
        self._span = span
        self._start: int | None = None
        """Where it is mapped, once that was asked."""
        self._read = 0
        self._sizes: FileIO | None = None
        self._guard = threading.Lock()

    def note(self, count: int) -> None:
        """So many bytes were read.  Inexact between threads, which does no harm."""
        self._read += count

    def lookups(self, size: int) -> tuple[int, int]:
        """How many objects may be looked up between two calls of ``settle``, by the file's size,
        and the bytes to ``note`` for each.
        """
        return (_AT_ONCE_IN_LARGE, _A_LOOKUP_IN_LARGE) if size > LARGE else (_AT_ONCE, A_LOOKUP)

    def settle(self) -> None:
        """Drop the map's pages if enough was read since the last time to make a look worth it."""
        if self._read < LOOK_EVERY:
            return
        self._read = 0
        if self._mapped_bytes() < _allowed:
            return
        # A disk that fails just now says so to whoever reads or writes, not here.
        with contextlib.suppress(OSError):
            if self._start is None:
                self._start = _mapped_at(self._path, self._span)
            if self._start is not None:
                _drop(self._start, os.stat(self._path).st_size)

    def _mapped_bytes(self) -> int:
        """Bytes of files in the memory of this process; 0 where the system does not tell.

        Asked hundreds of times a second by a busy writer, so the file stays open: to open it takes
        five times as long as to read it again.
        """
        try:
            with self._guard:
                if self._sizes is None:
                    self._sizes = FileIO("/proc/self/statm")
            sizes = os.pread(self._sizes.fileno(), 128, 0)
            return int(sizes.split()[_SHARED]) * mmap.PAGESIZE
        except OSError:
            return 0

    def close(self) -> None:
        """Nothing is mapped any more: what is there next is somebody else's memory."""
        self._start = None
        if self._sizes is not None:
            self._sizes.close()
            self._sizes = None


def give_back_heap() -> None:
    """Give what was freed, and lies in the C library's heap, back to the system.

    For whoever has just freed much that is not needed again soon; it takes two milliseconds.
    """
    if hasattr(libc(), "malloc_trim"):
        libc().malloc_trim(0)


def _drop(start: int, length: int) -> None:
    import ctypes  # most commands never get here

    libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _DONT_NEED)


def _mapped_at(path: Path, span: int) -> int | None:
    """Where so much is mapped of the file in this process; None where the system does not tell.

    Files of other file systems have the same inode numbers, but nobody else maps so much.  The
    device would not tell them apart: that of a map is not what ``stat`` says on btrfs.
    """
    inode = b"%d" % path.stat().st_ino
    try:
        with _MAPS.open("rb") as maps:
            for line in maps:
                fields = line.split(maxsplit=5)
                start, end = (int(address, 16) for address in fields[0].split(b"-"))
                if fields[4] == inode and end - start >= span:
                    return start
    except OSError:
        pass
    return None
