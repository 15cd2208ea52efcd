"""Write into one file the 4 KiB blocks in which another differs: ``python -m tools.bench.patch``.

A machine that lives on a file system writes only what it changes.  Copying the next state's image
over the last one would deny such a file system all sharing, so its disk is brought forward so.
"""

from __future__ import annotations

import os
import sys

BLOCK = 4096
PIECE = 1 << 20


def patch(source: str, target: str) -> int:
    """Make ``target`` equal to ``source``; returns the bytes that were written."""
    written = 0
    with open(source, "rb", buffering=0) as new, open(target, "r+b", buffering=0) as old:
        size = os.fstat(new.fileno()).st_size
        os.ftruncate(old.fileno(), size)
        start = 0
        while (start := next_data(new.fileno(), old.fileno(), start)) < size:
            written += patch_piece(new.fileno(), old.fileno(), start)
            start += PIECE
    return written


def patch_piece(new: int, old: int, start: int) -> int:
    """Bring one piece forward; returns the bytes that were written."""
    written = 0
    wanted, present = os.pread(new, PIECE, start), os.pread(old, PIECE, start)
    if wanted != present:
        for at in range(0, len(wanted), BLOCK):
            if wanted[at : at + BLOCK] != present[at : at + BLOCK]:
                written += os.pwrite(old, wanted[at : at + BLOCK], start + at)
    return written


def next_data(new: int, old: int, start: int) -> int:
    """Where, from ``start`` on, the next piece begins that is not a hole in both files."""
    found = []
    for fd in (new, old):
        try:
            found.append(os.lseek(fd, start, os.SEEK_DATA))
        except OSError:  # ENXIO: only a hole is left
            found.append(os.fstat(fd).st_size)
    return max(start, min(found) // BLOCK * BLOCK)


if __name__ == "__main__":
    print(patch(sys.argv[1], sys.argv[2]))
