"""Run checks in processes that may die of what they are given.

LMDB maps files that we have damaged: the engine may hit SIGSEGV, SIGBUS or an assertion, or loop.
``Children(target, …)`` keeps a few workers; each builds its check with the factory ``target``
("module:function", called with the worker's number and the arguments) and then takes one task
after another.  A task that kills or hangs its worker has that as its outcome, and the worker is
replaced.
"""

from __future__ import annotations

import importlib
import queue
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

from tools.faults.channel import inherited, spawn

WORKERS = 2
_STARTUP = 120.0


class Outcome(NamedTuple):
    """``value`` is what the check returned.  Else ``died`` is a signal's name, "exit N" or
    "timeout", or ``error`` is the traceback of what it raised."""

    number: int
    task: Any
    value: Any = None
    died: str = ""
    error: str = ""

    @property
    def returned(self) -> bool:
        return not self.died and not self.error

    @property
    def wrong(self) -> bool:
        """Whether the check found something, or did not come to its end."""
        return bool(self.value) or not self.returned


class Children:
    def __init__(
        self, target: str, *arguments: Any, workers: int = WORKERS, timeout: float = 60.0
    ) -> None:
        self._target, self._arguments = target, arguments
        self._workers, self._timeout = workers, timeout

    def run(self, tasks: Iterable[Any]) -> list[Outcome]:
        """All outcomes in the order of the tasks, which are dealt out in that order too."""
        todo: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        for item in enumerate(tasks):
            todo.put(item)
        for _ in range(self._workers):
            todo.put(None)
        with ThreadPoolExecutor(self._workers) as pool:
            lanes = list(pool.map(lambda lane: self._serve(todo, lane), range(self._workers)))
        return sorted((outcome for lane in lanes for outcome in lane), key=lambda o: o.number)

    def _serve(self, todo: queue.SimpleQueue[tuple[int, Any] | None], lane: int) -> list[Outcome]:
        done = []
        with Child(self._target, lane, *self._arguments, timeout=self._timeout) as child:
            for number, task in iter(todo.get, None):
                done.append(child.ask(task, number))
        return done


class Child:
    """One worker at a time; a context manager.  The next ``ask`` replaces a dead one."""

    def __init__(self, target: str, *arguments: Any, timeout: float = 60.0) -> None:
        self._target, self._arguments, self._timeout = target, arguments, timeout
        self._worker: _Worker | None = None

    def ask(self, task: Any, number: int = 0) -> Outcome:
        self._worker = self._worker or _Worker(self._target, self._arguments)
        outcome = self._worker.take(number, task, self._timeout)
        if outcome.died:
            self.close()
        return outcome

    def close(self) -> None:
        if self._worker:
            self._worker.close()
        self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """One child process; ``take`` gives it a task and waits for what becomes of it."""

    def __init__(self, target: str, arguments: tuple[Any, ...]) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        self._process, self._channel = spawn("tools.faults.children", stderr=self._stderr)
        self._channel.send((target, arguments))
        try:
            ready = self._channel.poll(_STARTUP) and self._channel.recv()
        except EOFError:
            ready = False
        if not ready:
            said = self._said()
            self._process.kill()
            self.close()
            raise RuntimeError(f"{target} did not start:\n{said}")

    def take(self, number: int, task: Any, timeout: float) -> Outcome:
        try:
            self._channel.send(task)
            if not self._channel.poll(timeout):
                self._process.kill()
                return Outcome(number, task, died="timeout", error=self._said())
            value, error = self._channel.recv()
        except (EOFError, ConnectionError):
            return Outcome(number, task, died=_cause(self._process.wait()), error=self._said())
        return Outcome(number, task, value=value, error=error)

    def close(self) -> None:
        self._channel.close()
        self._process.wait()
        self._stderr.close()

    def _said(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()[-2000:].decode(errors="replace")


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _tasks(channel: Any) -> Iterator[Any]:
    while True:
        try:
            yield channel.recv()
        except (EOFError, ConnectionError):
            return


def _main() -> None:
    channel = inherited()
    target, arguments = channel.recv()
    module, _, name = target.partition(":")
    check: Callable[[Any], Any] = getattr(importlib.import_module(module), name)(*arguments)
    channel.send("ready")
    for task in _tasks(channel):
        try:
            answer = (check(task), "")
        except Exception:
            answer = (None, traceback.format_exc())
        channel.send(answer)


if __name__ == "__main__":
    _main()
    sys.exit(0)
