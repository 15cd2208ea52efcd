"""The signals that end a program, for commands that have something to put in order first."""

from __future__ import annotations

import signal
from collections.abc import Callable

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def on_end(act: Callable[[], None]) -> list[signal.Signals]:
    """Have ``act`` called by the signals that end a program; return them.

    One that was ignored when the program began stays so: ``nohup`` did that to SIGHUP, or a shell
    to the SIGINT of what it runs in the background.
    """
    heeded = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, lambda *_: act())
    return heeded


def interrupt() -> None:
    """End like Ctrl-C: all that is under way is left by its own way out."""
    raise KeyboardInterrupt
