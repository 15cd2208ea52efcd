"""Progress bars: only on a terminal, only for what takes longer than a second.

Operations report to a plain callable ``(done, total)`` in bytes; a total of 0 means unknown.  On
anything but a terminal that callable does nothing, and rich (50 ms to import) is never loaded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 1.0  # seconds before a bar appears
INTERVAL = 0.1  # seconds between two changes of the bar

Report = Callable[[int, int], None]


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Report]:
    """Give a callable that draws a bar named ``title`` once it is worth it."""
    if quiet or not sys.stderr.isatty():
        yield _ignore
        return
    bar = _Bar(title)
    try:
        yield bar.report
    finally:
        bar.close()


def _ignore(_done: int, _total: int) -> None:
    """Nobody is watching."""


class _Bar:
    """A bar of rich, made late and moved at most ten times a second."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._next = time.monotonic() + PATIENCE
        self._drawn: Any = None
        self._task: Any = None

    def report(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + INTERVAL
        if self._drawn is None:
            self._start()
        self._drawn.update(self._task, completed=done, total=total or None)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._drawn = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._drawn.add_task(self.title, total=None)
        self._drawn.start()

    def close(self) -> None:
        if self._drawn is not None:
            self._drawn.stop()
