"""What a machine wrote to its serial console: a file that a guest can flood."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LIMIT = 16 << 20
KEPT = LIMIT // 2
_STEP = 1 << 16


def bound(path: Path) -> None:
    """Drop the older part of a log that has grown beyond ``LIMIT``.

    QEMU goes on at its end, wherever that is; what it writes while the end moves may be lost.
    """
    with contextlib.suppress(OSError):  # a log is no reason to end a machine
        if path.stat().st_size <= LIMIT:
            return
        with open(path, "a+b") as log:
            log.seek(-KEPT, os.SEEK_END)
            last = log.read()
            log.truncate(0)
            log.write(last[last.find(b"\n") + 1 :])


def lines(path: Path, last: int | None = None) -> Iterator[str]:
    """Its lines; only so many ``last`` ones, for which no more is read than they need."""
    with open(path, "rb") as log:
        if last is None:
            for line in log:
                yield from _text(line)
        else:
            yield from _text(_end(log, last))[-last:]


def _end(log: BinaryIO, count: int) -> bytes:
    """The end of a file, with at least ``count`` lines if it has them."""
    parts: list[bytes] = []
    place, found = log.seek(0, os.SEEK_END), 0
    while place > 0 and found <= count:
        step = min(_STEP, place)
        place -= step
        log.seek(place)
        parts.append(log.read(step))
        found += parts[-1].count(b"\n")
    return b"".join(reversed(parts))


def _text(data: bytes) -> list[str]:
    return data.decode(errors="replace").splitlines()
