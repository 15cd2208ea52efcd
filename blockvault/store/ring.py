"""Bytes by key in a file without a name: a ring, in which the oldest make room for what comes.

The system keeps of the file in memory what it has room for; the process keeps nothing but where
each key's bytes are.  The file is gone with the process.  Nothing of it is proved here: whoever
reads from it must be able to tell what he put there from anything else.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blockvault.store import filesystem


class Held(NamedTuple):
    """Where a key's bytes are, and what was said about them."""

    offset: int
    size: int
    about: Any


class Ring:
    """Up to ``limit`` bytes; safe to use from several threads."""

    def __init__(self, directory: Path, limit: int) -> None:
        """``OSError`` if the disk takes no file."""
        import tempfile  # only servers get here, and it takes a while to load

        self._limit = min(limit, filesystem.to_spare(directory))
        self.file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - kept open
        self._given = 0
        """Bytes given out since the beginning; a position counts from there, around the ring."""
        self._kept: deque[tuple[int, Hashable]] = deque()
        """Positions that may still be there and the keys they were given to, oldest first."""
        self._where: dict[Hashable, Held] = {}
        self._writing: set[Hashable] = set()
        self._turned_away = 0
        self.ended = False
        self._closed = False
        self._guard = threading.Lock()
        self.find = self._where.get

    def admits(self, size: int, one_in: int) -> bool:
        """Whether so many bytes may come in: while there is room all may, then one in a few.

        Where more is read than there is room for, what came last would not stay until it is needed.
        """
        if self.ended or size > self._limit:
            return False
        with self._guard:
            if self._given + size <= self._limit:
                return True
            self._turned_away += 1
            return self._turned_away % one_in == 0

    def put(self, key: Hashable, pieces: Sequence[bytes | memoryview], about: object) -> None:
        """Hold these bytes instead of those that the key has, unless some are on their way."""
        size = sum(map(len, pieces))
        claimed = self._claim(key, size)
        if claimed is None:
            return
        offset = claimed % self._limit
        try:
            written = os.pwritev(self.file.fileno(), pieces, offset)
        except OSError:
            written = -1
        with self._guard:
            if written < 0:
                self.ended = True  # a full disk has better use for its room
            elif written == size and not self._closed and not self._is_gone(claimed):
                self._where[key] = Held(offset, size, about)
            self._writing.discard(key)
            self._close_if_done()

    def _claim(self, key: Hashable, size: int) -> int | None:
        """Give out room, taken from the oldest that are in it; its position.

        None if nothing is taken any more, or if somebody writes for this key.
        """
        with self._guard:
            if self.ended or size > self._limit or key in self._writing:
                return None
            rest = self._limit - self._given % self._limit
            if size > rest:
                self._given += rest
            position = self._given
            self._given += size
            while self._kept and self._is_gone(self._kept[0][0]):
                self._forget(*self._kept.popleft())
            self._kept.append((position, key))
            self._writing.add(key)
            return position

    def _is_gone(self, position: int) -> bool:
        """Whether what was at that position has been given to another."""
        return position < self._given - self._limit

    def _forget(self, position: int, key: Hashable) -> None:
        held = self._where.get(key)
        if held is not None and held.offset == position % self._limit:
            del self._where[key]

    def read(self, held: Held, start: int, length: int) -> bytes | None:
        """Bytes of what is held, as they are now; None if they cannot be read."""
        try:
            return os.pread(self.file.fileno(), length, held.offset + start)
        except (OSError, ValueError):  # it may have been closed just now
            return None

    def close(self) -> None:
        with self._guard:
            self.ended = self._closed = True
            self._where.clear()
            self._close_if_done()

    def _close_if_done(self) -> None:
        """Close the file unless somebody is writing to it, who will then: its number would go to
        another file.
        """
        if self._closed and not self._writing:
            self.file.close()
