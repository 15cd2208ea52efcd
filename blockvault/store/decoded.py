"""Decoded frames in a file without a name, so that a small read decodes a frame once and not again.

A random read of 4 KiB out of a frame of 256 KiB costs sixty times what it is for.  What was decoded
for such a read is written here; the system keeps in memory what it has room for, and the process
keeps nothing but where each frame is.  The oldest frame makes room, but only for one new frame in a
few: where more is read than there is room for, the others would not stay until they are needed.
The file is gone with the process, and what is read from it is proved like everything else: the
caller compares the hash, and takes a mismatch for a frame that is not here.

To wait for a frame's second decoding was tried: who reads everything once gains a twentieth, and
who reads a disk at random for some seconds gets half as many reads.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from blockvault.store.frames import Objects

SLOT = 256 << 10
WORTH_IT = 32 << 10
"""Frames that are shorter are decoded as fast as they are read."""
ADMITTED = 4
"""Of so many frames one is kept when the file is full."""
FREE_SHARE = 4
"""The file takes at most this part of what the disk has free when it is made."""


class DecodedFile:
    """Up to ``limit`` bytes of frames of equal objects; safe to use from several threads."""

    def __init__(self, directory: Path, limit: int) -> None:
        """``OSError`` if the disk takes no file."""
        import tempfile  # only servers get here, and it takes a while to load

        status = os.statvfs(directory)
        limit = min(limit, status.f_bavail * status.f_frsize // FREE_SHARE)
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - kept open
        self._slots = limit // SLOT
        self._owners = [0] * self._slots  # no frame has the number 0
        self._next = 0
        self._turned_away = 0
        self._writing: set[int] = set()
        self._where: dict[int, tuple[int, int, int]] = {}
        self._closed = False
        self._guard = threading.Lock()

    def put(self, number: int, objects: Objects) -> None:
        """Keep a decoded frame, if it is of the kind that is worth it."""
        size = len(objects.payload)
        if not objects.uniform or not WORTH_IT <= size <= SLOT:
            return
        slot = self._claim(number)
        if slot is None:
            return
        try:
            written = os.pwrite(self._file.fileno(), objects.payload, slot * SLOT)
        except OSError:
            written = -1
        with self._guard:
            if written < 0:
                self._slots = 0  # a full disk has better use for its room
            elif written == size and self._owners[slot] == number:
                self._where[number] = (slot * SLOT, objects.uniform, objects.count)
            self._writing.discard(number)
            self._close_if_done()

    def _claim(self, number: int) -> int | None:
        """The slot that a frame will be written to, taken from the frame that was in it.

        None if there is no file any more, or if the frame must not come in.
        """
        with self._guard:
            if not self._slots or number in self._where or number in self._writing:
                return None
            owner = self._owners[self._next]
            if owner and self._turned_away < ADMITTED - 1:
                self._turned_away += 1
                return None
            slot, self._next = self._next, (self._next + 1) % self._slots
            self._where.pop(owner, None)
            self._owners[slot], self._turned_away = number, 0
            self._writing.add(number)
            return slot

    def get(self, number: int, place: int) -> bytes | None:
        """Object ``place`` of a frame, not proved yet; None if it is not here."""
        found = self._where.get(number)
        if found is None or place >= found[2]:
            return None
        start, length, _ = found
        try:
            return os.pread(self._file.fileno(), length, start + place * length)
        except (OSError, ValueError):  # it may have been closed just now
            return None

    def close(self) -> None:
        with self._guard:
            self._slots, self._closed = 0, True
            self._where.clear()
            self._close_if_done()

    def _close_if_done(self) -> None:
        """Close the file unless somebody is writing to it, who will then: its number would go to
        another file.
        """
        if self._closed and not self._writing:
            self._file.close()
