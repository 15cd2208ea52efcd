"""The signals that end a program.

A command leaves what is under way by its own way out, as after Ctrl-C: ``unwind``.  Ended where it
stands it would leave half an image beside its target, which nobody else removes.  One that serves
until it is told to stop puts ``on_end`` in the place of that.

What was ignored when the program began stays so: ``nohup`` did that to SIGHUP, or a shell to the
SIGINT of what it runs in the background.
"""

from __future__ import annotations

import _thread
import os
import signal
import time
from collections.abc import Callable, Sequence

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_ONE = 1.0
"""Seconds within which signals are one: ``timeout`` sends its own to the program and to its group,
and a terminal that closes is heard of from the kernel and from the shell."""


class Ended(KeyboardInterrupt):
    """A signal other than that of Ctrl-C ended the program."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def unwind() -> None:
    """Have ``Ended`` raised where the program is when it is told to end; Ctrl-C does so anyway."""
    raised = float("-inf")

    def end(number: int, _: object) -> None:
        nonlocal raised
        if time.monotonic() - raised > _ONE:  # who asks again later wants out whatever it costs
            raised = time.monotonic()
            raise Ended(number)

    for number in _heeded((signal.SIGTERM, signal.SIGHUP)):
        signal.signal(number, end)


def on_end(
    act: Callable[[], None], last: Callable[[], None] | None = None
) -> list[signal.Signals]:
    """Have ``act`` called by the signals that end a program; return them.

    On a thread of its own: what the main thread was at when the signal came goes on only when the
    handler is done, and it may hold the lock that ``act`` waits for.  With ``last`` who tells it
    again ends the program after that, see ``end_at_once_if_told_again``.
    """

    def end(number: int, _: object) -> None:
        if last is not None:
            end_at_once_if_told_again(heeded, last)
        try:
            _thread.start_new_thread(act, ())  # threading.Thread takes locks itself
        except RuntimeError:  # no more threads: that lock is hardly ever held, and we are to end
            act()

    heeded = _heeded(ENDING)
    for number in heeded:
        signal.signal(number, end)
    return heeded


def end_at_once_if_told_again(
    heeded: Sequence[signal.Signals], last: Callable[[], None] = lambda: None
) -> None:
    """From now on a signal ends the program where it stands, unless it is still the first one.

    Only ``last`` is called before, which may wait for nothing that the program is at.
    """
    began = time.monotonic()

    def end(number: int, _: object) -> None:
        if time.monotonic() - began > _ONE:
            signal.signal(number, signal.SIG_DFL)
            try:
                last()
            finally:
                os.kill(os.getpid(), number)

    for number in heeded:
        signal.signal(number, end)


def _heeded(numbers: Sequence[signal.Signals]) -> list[signal.Signals]:
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
