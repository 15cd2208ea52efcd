"""Commands that are given again and again while something else is measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tools.bench.commands import Command, CommandFailed
from tools.bench.commands import run as run_commands


@contextmanager
def repeated(spell: Callable[[int], Sequence[Command]], pause: float) -> Iterator[list[float]]:
    """Run ``spell(0)``, ``spell(1)``, … with a pause before each until the block ends.

    Yields the list that gets the seconds of each; the first failure is raised at the end.
    """
    enough = threading.Event()
    taken: list[float] = []
    failures: list[CommandFailed] = []

    def work() -> None:
        try:
            while not enough.wait(pause):
                taken.append(run_commands(spell(len(taken))).wall)
        except CommandFailed as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield taken
    finally:
        enough.set()
        thread.join()
    if failures:
        raise failures[0]
