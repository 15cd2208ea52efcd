"""Programs that are killed in the middle of their work, and what they had promised until then.

A ``Victim`` prints one line for each thing it promises (a single small write to a pipe: whole or
not there), and gets SIGKILL at a moment of the test's choosing.  What it had printed counts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tools.faults.channel import REPOSITORY

_DEADLINE = 120.0


class EndedEarly(Exception):
    """A program ended by itself before it had promised what was waited for."""


class Victim:
    """A running program; ``lines`` are its promises so far, complete lines only."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, name: str = ""
    ) -> None:
        self.name = name
        self.lines: list[str] = []
        self.errors = ""
        self._ended = False
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._arrived = threading.Condition()
        self._threads = [threading.Thread(target=self._collect),
                         threading.Thread(target=self._listen)]  # fmt: skip
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, count: int, *, ended_is_fine: bool = False) -> float:
        """Wait until it has promised so many things; returns the seconds that took.

        One that ends before has not come so far, and that is an error with what it said, unless
        the caller expects it.
        """
        start = time.monotonic()
        with self._arrived:
            done = self._arrived.wait_for(
                lambda: len(self.lines) >= count or self._ended, _DEADLINE
            )
        short = f"{self.name or self.pid} promised {len(self.lines)} of {count}"
        if not done:
            raise TimeoutError(short)
        if len(self.lines) < count and not ended_is_fine:
            self.join()
            raise EndedEarly(f"{short}: {self.errors}")
        return time.monotonic() - start

    def kill(self) -> list[str]:
        """SIGKILL, if it still runs; all that it had promised."""
        self._process.kill()
        self.join()
        return self.lines

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def join(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        code = self._process.wait(_DEADLINE)
        for thread in self._threads:
            thread.join()
        return code

    def _collect(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                with self._arrived:
                    if line.endswith(b"\n"):
                        self.lines.append(line.decode().rstrip("\n"))
                    self._arrived.notify_all()
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            self.errors = stderr.read().decode(errors="replace")


def until(condition: Callable[[], bool], what: str, deadline: float = _DEADLINE) -> None:
    """Wait until ``condition`` holds; for what has no better way to tell."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.002)


def remove_sockets(directory: Path) -> None:
    """What a killed server leaves behind, and its successor must not trip over."""
    for path in directory.iterdir():
        if path.is_socket():
            path.unlink()
