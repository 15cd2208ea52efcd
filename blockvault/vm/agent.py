"""The guest's agent: file systems frozen for the moment of a quiet snapshot.

The agent (``qemu-guest-agent`` in most distributions) speaks one JSON object a line on a virtio
port.  What an earlier connection left unread is skipped with a numbered sync.
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


class Agent:
    """A connected agent; ``ToolFailed`` when none answers."""

    def __init__(self, path: Path, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
            self._sync()
        except OSError as error:
            self._socket.close()
            raise _silent(error) from None

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command of the agent."""
        try:
            self._send(command, arguments)
            answer = self._answer(time.monotonic() + self._seconds)
        except OSError as error:
            raise _silent(error) from None
        if "error" in answer:
            raise ToolFailed(f"the guest's agent refused {command}: {answer['error'].get('desc')}")
        return answer.get("return")

    def _sync(self) -> None:
        number = secrets.randbelow(1 << 31)
        self._send("guest-sync", {"id": number})
        deadline = time.monotonic() + self._seconds
        while self._answer(deadline).get("return") != number:
            pass

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._socket.sendall(json.dumps(request).encode() + b"\n")

    def _answer(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            more = self._socket.recv(65536)
            if not more:
                raise OSError("it hung up")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                return value
        return {}

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Freeze the guest's file systems for the block; they are thawed whatever happens."""
    agent = Agent(path)
    try:
        agent.execute("guest-fsfreeze-freeze")
        try:
            yield
        finally:
            agent.execute("guest-fsfreeze-thaw")
    finally:
        agent.close()


def _silent(error: OSError) -> ToolFailed:
    return ToolFailed(
        f"the guest's agent does not answer ({error}); it needs qemu-guest-agent running",
        kind="no-agent",
    )
