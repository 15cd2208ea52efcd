"""The guest's agent: file systems frozen for the moment of a quiet snapshot.

The agent (``qemu-guest-agent`` in most distributions) speaks one JSON object a line on a virtio
port.  What an earlier connection left unread is skipped with a numbered sync.  The port is the
guest's: whatever it says there, and for however long, an answer has its deadline and its size.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockvault.errors import ToolFailed

SECONDS = 10.0
FREEZE_SECONDS = 60.0
"""A freeze writes first what the guest has not written yet."""
_FREEZE, _THAW = "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"
_MOST = 1 << 20
"""Bytes of one answer."""


class Agent:
    """A connected agent; ``ToolFailed`` when none answers."""

    def __init__(self, path: Path, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._buffer = b""
        self._unanswered = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(seconds)
        try:
            self._socket.connect(str(path))
            self._sync()
        except OSError as error:
            self._socket.close()
            raise _silent(error) from None

    def execute(self, command: str, *, seconds: float | None = None) -> Any:
        """Run one command of the agent; answers to earlier ones that came too late are skipped."""
        seconds = self._seconds if seconds is None else seconds
        deadline = time.monotonic() + seconds
        try:
            self._send(command)
            self._unanswered += 1
            while self._unanswered:
                answer = self._answer(deadline)
                self._unanswered -= 1
        except TimeoutError:
            raise ToolFailed(
                f"the guest's agent did not answer {command} in {seconds:g} s: its guest is busy, "
                "or it is stuck. It is asked for --quiesce alone",
                kind="no-agent",
            ) from None
        except OSError as error:
            raise _silent(error) from None
        if "error" in answer:
            raise ToolFailed(f"the guest's agent refused {command}: {answer['error'].get('desc')}")
        return answer.get("return")

    def _sync(self) -> None:
        number = secrets.randbelow(1 << 31)
        self._send("guest-sync", id=number)
        deadline = time.monotonic() + self._seconds
        while self._answer(deadline).get("return") != number:
            pass

    def _send(self, command: str, **arguments: Any) -> None:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._socket.settimeout(self._seconds)
        self._socket.sendall(json.dumps(request).encode() + b"\n")

    def _answer(self, deadline: float) -> dict[str, Any]:
        while (left := deadline - time.monotonic()) > 0:
            line, end, rest = self._buffer.partition(b"\n")
            if end:
                self._buffer = rest
                return _object(line)
            if len(line) > _MOST:
                raise OSError("it says too much")
            self._socket.settimeout(left)
            more = self._socket.recv(65536)
            if not more:
                raise OSError("it hung up")
            self._buffer += more
        raise TimeoutError("timed out")

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def frozen(path: Path, mark: Path, seconds: float = FREEZE_SECONDS) -> Iterator[None]:
    """Freeze the guest's file systems for the block; they are thawed whatever happens.

    One that does not freeze them within ``seconds`` may do so later.  It is told to thaw them then.
    ``mark`` is there until it has: it tells who takes the guest over, should this process die.
    """
    with contextlib.closing(Agent(path)) as agent:
        mark.touch()
        try:
            agent.execute(_FREEZE, seconds=seconds)
            yield
        except BaseException:
            with contextlib.suppress(ToolFailed):
                _thaw(agent, mark)
            raise
        _thaw(agent, mark)


def thaw(path: Path, mark: Path) -> None:
    """Thaw the file systems of a guest that was frozen by who died since, if the mark says so."""
    if mark.exists():
        with contextlib.closing(Agent(path)) as agent:
            _thaw(agent, mark)


def _thaw(agent: Agent, mark: Path) -> None:
    agent.execute(_THAW)
    mark.unlink(missing_ok=True)


def _object(line: bytes) -> dict[str, Any]:
    """What a line says; nothing if it is no object."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    return {}


def _silent(error: OSError) -> ToolFailed:
    return ToolFailed(
        f"the guest's agent does not answer ({error}); it needs qemu-guest-agent running",
        kind="no-agent",
    )
