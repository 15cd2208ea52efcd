"""Which pages a guest touched first when it went on from a snapshot; the next one will, too.

A guest that is started without its memory waits for each page that it touches.  What it waited for
is kept beside the run directories, under the name of the memory, so that the next machine from the
same snapshot gets these pages while its QEMU still starts.  It is a hint: whatever it says, a guest
gets the right pages, sooner or later.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

_KEPT = 256
"""Memories of which the pages are known at most; the oldest go."""
_MOST = 65_536


def load(path: Path) -> Sequence[int]:
    """Numbers of pages, in the order in which they were touched; none if nobody knows."""
    pages = array("I")
    with contextlib.suppress(OSError, ValueError):
        pages.frombytes(path.read_bytes()[: _MOST * pages.itemsize])
    return pages


def save(path: Path, pages: Sequence[int]) -> None:
    """Keep them for the next one, if that works."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(array("I", pages[:_MOST]).tobytes())
        partial.replace(path)
        known = sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime)
        for old in known[:-_KEPT]:
            old.unlink()
