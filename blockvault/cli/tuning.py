"""How interpreter, heap and the map of the vault's file are set, by how long a process lives.

Memory that comes from the kernel anew for each frame is cleared page by page, which took half of
the time of a sequential read.  So frames are to stay on the heap, and the heap is not to shrink
between two of them.  Other C libraries than glibc have no such settings, and are left alone.
"""

from __future__ import annotations

import gc
import sys

from blockvault.libc import libc

SWITCH_SECONDS = 0.0005
"""How long a thread that computes may keep another from running, which may have a guest to answer.

A fifth of that costs more in switches than it gains.
"""

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
"""Names of settings (``mallopt(3)``)."""
KEPT = 256 << 20
"""Bytes that a process which soon ends may keep without using them."""
MAPPED = 96 << 20
"""Bytes of files that may be mapped into a process that serves guests: who reads what a guest wrote
at random touches the whole index again and again, and with half as much is a quarter slower."""


def threads() -> None:
    """For every process: hand the interpreter on soon.

    A thread gives Python's lock away to hash or to compress, and gets it back when whoever took it
    has had its interval.
    """
    sys.setswitchinterval(SWITCH_SECONDS)


def for_months() -> None:
    """For a process that serves guests, on many threads.

    Frames are freed by other threads than take them: an arena for each would keep twice as much.
    What is longer than a frame is rare, and goes back at once.
    """
    from blockvault.store import residency

    # What lives long here are tuples of numbers and bytes by the ten thousand, none of them in a
    # cycle: looking through them every 700 objects made requests wait.
    gc.freeze()
    gc.set_threshold(100_000, 20, 10)
    residency.allow(MAPPED)
    _set({_ARENA_MAX: 2, _MMAP_THRESHOLD: 1 << 20})


def for_a_command() -> None:
    """Packed frames too; one heap for all threads, so that each finds what others have freed."""
    _set({_ARENA_MAX: 1, _MMAP_THRESHOLD: 8 << 20, _TRIM_THRESHOLD: KEPT})


def _set(settings: dict[int, int]) -> None:
    if hasattr(libc(), "mallopt"):
        for name, value in settings.items():
            libc().mallopt(name, value)
