"""What guests that started from one memory touched first, for the next guest from it.

Without that each of them waits for the same pages one by one.  The pages themselves are kept, in
the runtime directory, which is in memory: to find them in the vault would take as long as QEMU
takes to start.  A file of them is their hash, their numbers and their contents; one that is not
whole is as good as none.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Mapping
from pathlib import Path

from blockvault import files
from blockvault.ids import ID_SIZE, object_id
from blockvault.vm.stream import PAGE

_MOST = 4096
"""Pages of one memory: 16 MiB."""
_KEPT = 64 << 20
"""Bytes of all memories; the pages of those that were not started for longest go."""


def note(pages: dict[int, bytes], number: int, page: bytes) -> None:
    """A guest waited for a page."""
    if len(pages) < _MOST:
        pages.setdefault(number, page)


def load(path: Path) -> dict[int, bytes]:
    """Pages by their numbers, in the order in which they were touched; none if nobody knows."""
    try:
        data = memoryview(path.read_bytes())
        os.utime(path)  # what is used is not the oldest
    except OSError:
        return {}
    said, rest = data[:ID_SIZE], data[ID_SIZE:]
    if object_id(rest) != said:
        return {}
    numbers = array("I")
    end = len(rest) // (numbers.itemsize + PAGE) * numbers.itemsize
    numbers.frombytes(rest[:end])
    return {
        number: bytes(rest[end + at * PAGE : end + (at + 1) * PAGE])
        for at, number in enumerate(numbers)
    }


def save(path: Path, pages: Mapping[int, bytes]) -> None:
    """Keep them for the next one, if that works."""
    content = array("I", pages).tobytes() + b"".join(pages.values())
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        files.replace(path, object_id(content) + content)
        _drop_old(path.parent)


def _drop_old(folder: Path) -> None:
    known = [(file, file.stat()) for file in folder.iterdir()]
    kept = 0
    for file, info in sorted(known, key=lambda each: each[1].st_mtime, reverse=True):
        kept += info.st_size
        if kept > _KEPT:
            file.unlink()
