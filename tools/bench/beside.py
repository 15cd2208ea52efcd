"""Commands that are given again and again while something else is measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tools.bench.commands import Command, CommandFailed, Cost
from tools.bench.commands import run as run_commands


@contextmanager
def repeated(spell: Callable[[int], Sequence[Command]], pause: float) -> Iterator[list[Cost]]:
    """Run ``spell(0)``, ``spell(1)``, … with a pause before each until the block ends.

    Yields the list that gets the cost of each; the first failure is raised at the end.  What still
    runs then is waited for; an exception, in the block or while that is waited for, ends it.
    """
    enough, ended = threading.Event(), threading.Event()
    taken: list[Cost] = []
    failures: list[CommandFailed] = []

    def work() -> None:
        try:
            while not enough.wait(pause):
                taken.append(run_commands(spell(len(taken)), ended=ended))
        except CommandFailed as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield taken
        enough.set()
        thread.join()
    except BaseException:
        ended.set()
        raise
    finally:
        enough.set()
        thread.join()
    if failures:
        raise failures[0]
