"""The C library's heap in processes that decode frames again and again.

Memory that comes from the kernel anew for each frame is cleared page by page, which took half of
the time of a sequential read.  So frames are to stay on the heap, and the heap is not to shrink
between two of them.  Other C libraries than glibc have no such settings, and are left alone.
"""

from __future__ import annotations

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
"""Names of settings (``mallopt(3)``)."""
KEPT = 256 << 20
"""Bytes that a process which soon ends may keep without using them."""


def for_months() -> None:
    """Frames are freed by other threads than take them: an arena for each would keep twice as much.

    What is longer than a frame is rare, and goes back at once.
    """
    _set({_ARENA_MAX: 2, _MMAP_THRESHOLD: 1 << 20})


def for_a_command() -> None:
    """Packed frames too; one heap for all threads, so that each finds what others have freed."""
    _set({_ARENA_MAX: 1, _MMAP_THRESHOLD: 8 << 20, _TRIM_THRESHOLD: KEPT})


def _set(settings: dict[int, int]) -> None:
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for name, value in settings.items():
            libc.mallopt(name, value)
