"""Whoever ends a run, and however: mounts are given back, and what was measured is kept."""

from __future__ import annotations

import signal
from typing import NoReturn

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def heed() -> None:
    """Let the first signal interrupt this program.

    A terminal that is closed does so too, unless the program was told to outlive it (``nohup``).
    """
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(*_: object) -> NoReturn:
    """Once: another signal would interrupt the giving back."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
