"""Decoded frames in a file without a name, so that a small read decodes a frame once and not again.

A random read of 4 KiB out of a frame of 256 KiB costs sixty times what it is for.  What was decoded
for such a read is written here; the system keeps in memory what it has room for, and the process
keeps nothing but where each frame is.  The oldest frame makes room.  The file is gone with the
process, and what is read from it is proved like everything else: the caller compares the hash, and
takes a mismatch for a frame that is not here.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from blockvault.store.frames import Objects

SLOT = 256 << 10
WORTH_IT = 32 << 10
"""Frames that are shorter are decoded as fast as they are read."""
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
        self._owners: list[int | None] = [None] * self._slots
        self._next = 0
        self._where: dict[int, tuple[int, int, int]] = {}
        self._guard = threading.Lock()

    def put(self, number: int, objects: Objects) -> None:
        """Keep a decoded frame, if it is of the kind that is worth it."""
        size = len(objects.payload)
        if not objects.uniform or not WORTH_IT <= size <= SLOT or number in self._where:
            return
        with self._guard:
            if not self._slots:
                return
            slot, self._next = self._next, (self._next + 1) % self._slots
            owner = self._owners[slot]
            if owner is not None:
                del self._where[owner]
            self._owners[slot] = None
            try:
                if os.pwrite(self._file.fileno(), objects.payload, slot * SLOT) != size:
                    return
            except OSError:
                self._slots = 0  # a full disk has better use for its room
                return
            self._owners[slot] = number
            self._where[number] = (slot * SLOT, objects.uniform, objects.count)

    def get(self, number: int, place: int) -> bytes | None:
        """Object ``place`` of a frame, not proved yet; None if it is not here."""
        found = self._where.get(number)
        if found is None or place >= found[2]:
            return None
        start, length, _ = found
        try:
            return os.pread(self._file.fileno(), length, start + place * length)
        except OSError:
            return None

    def close(self) -> None:
        with self._guard:
            self._slots = 0
            self._where.clear()
            self._file.close()
