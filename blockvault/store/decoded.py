"""Decoded objects in a file without a name, so that a small read decodes a frame once, not again.

A random read of 4 KiB out of a frame of 256 KiB costs sixty times what it is for.  What was decoded
for such a read is written here, as far as it may be asked for; the system keeps in memory what it
has room for, and the process keeps nothing but where each frame's objects are.  The file is a ring:
the oldest make room, but only for one new frame in a few: where more is read than there is room
for, the others would not stay until they are needed.  The file is gone with the process, and what
is read from it is proved like everything else: the caller compares the hash, and takes a mismatch
for an object that is not here.

To wait for a frame's second decoding was tried: who reads everything once gains a twentieth, and
who reads a disk at random for some seconds gets half as many reads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from blockvault.store.frames import Objects

LARGEST = 256 << 10
"""Longer frames are packed ones: what lies in those is needed at many places, and they are kept in
memory."""
WORTH_IT = 32 << 10
"""Frames that are shorter are decoded as fast as they are read."""
ADMITTED = 4
"""Of so many frames one is kept when the file is full."""
FREE_SHARE = 4
"""The file takes at most this part of what the disk has free when it is made."""


class _Held(NamedTuple):
    """Objects of one frame that lie in the file one after another, by place in the frame."""

    offset: int
    length: int
    """That of each object."""
    slots: int
    """One bit for each object of the frame: whether it is here."""

    @property
    def size(self) -> int:
        return self.length * self.slots.bit_count()


class DecodedFile:
    """Up to ``limit`` bytes of equal objects out of frames; safe to use from several threads."""

    def __init__(self, directory: Path, limit: int) -> None:
        """``OSError`` if the disk takes no file."""
        import tempfile  # only servers get here, and it takes a while to load

        status = os.statvfs(directory)
        self._limit = min(limit, status.f_bavail * status.f_frsize // FREE_SHARE)
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - kept open
        self._given = 0
        """Bytes given out since the beginning; a position counts from there, around the ring."""
        self._kept: deque[tuple[int, int]] = deque()
        """Positions that may still be there and the frames they were given to, oldest first."""
        self._where: dict[int, _Held] = {}
        self._writing: set[int] = set()
        self._turned_away = 0
        self._ended = self._limit < LARGEST
        self._closed = False
        self._guard = threading.Lock()

    def wants(self, objects: Objects) -> bool:
        """Whether a decoded frame is of the kind that is worth it, and may come in."""
        if self._ended or not objects.uniform or not WORTH_IT <= len(objects.payload) <= LARGEST:
            return False
        with self._guard:
            if self._given + LARGEST <= self._limit:
                return True
            self._turned_away = (self._turned_away + 1) % ADMITTED
            return not self._turned_away

    def put(self, number: int, objects: Objects, slots: Iterable[int]) -> None:
        """Keep some objects of a frame, beside those of it that are here already."""
        wanted = 0
        for slot in slots:
            wanted |= 1 << slot
        claimed = self._claim(number, objects.uniform, wanted)
        if claimed is None:
            return
        position, held = claimed
        try:
            written = os.pwritev(self._file.fileno(), _pieces(objects, held), held.offset)
        except OSError:
            written = -1
        with self._guard:
            if written < 0:
                self._ended = True  # a full disk has better use for its room
            elif written == held.size and not self._closed and not self._is_gone(position):
                self._where[number] = held
            self._writing.discard(number)
            self._close_if_done()

    def _claim(self, number: int, length: int, wanted: int) -> tuple[int, _Held] | None:
        """Give out room for objects of a frame, taken from the oldest that are in it; its position.

        None if there is no file any more, or if the objects are there or on their way.
        """
        with self._guard:
            known = self._where.get(number)
            slots = known.slots | wanted if known else wanted
            if self._ended or number in self._writing or (known and known.slots == slots):
                return None
            size = length * slots.bit_count()
            rest = self._limit - self._given % self._limit
            if size > rest:
                self._given += rest
            position = self._given
            self._given += size
            while self._kept and self._is_gone(self._kept[0][0]):
                self._forget(*self._kept.popleft())
            self._kept.append((position, number))
            self._writing.add(number)
            return position, _Held(position % self._limit, length, slots)

    def _is_gone(self, position: int) -> bool:
        """Whether what was at that position has been given to another."""
        return position < self._given - self._limit

    def _forget(self, position: int, number: int) -> None:
        held = self._where.get(number)
        if held is not None and held.offset == position % self._limit:
            del self._where[number]

    def get(self, number: int, slot: int) -> bytes | None:
        """One object of a frame, not proved yet; None if it is not here."""
        held = self._where.get(number)
        if held is None or not held.slots >> slot & 1:
            return None
        before = (held.slots & ((1 << slot) - 1)).bit_count()
        try:
            return os.pread(self._file.fileno(), held.length, held.offset + before * held.length)
        except (OSError, ValueError):  # it may have been closed just now
            return None

    def close(self) -> None:
        with self._guard:
            self._ended = self._closed = True
            self._where.clear()
            self._close_if_done()

    def _close_if_done(self) -> None:
        """Close the file unless somebody is writing to it, who will then: its number would go to
        another file.
        """
        if self._closed and not self._writing:
            self._file.close()


def _pieces(objects: Objects, held: _Held) -> list[memoryview]:
    payload = memoryview(objects.payload)
    if held.size == len(payload):
        return [payload]
    return [
        payload[at : at + held.length]
        for slot, at in enumerate(range(0, len(payload), held.length))
        if held.slots >> slot & 1
    ]
