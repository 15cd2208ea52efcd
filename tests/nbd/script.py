"""A client that is a list of bytes: a socket's stand-in, for sessions without a network."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable

from blockvault.nbd.budget import Budget
from blockvault.nbd.exports import Exports
from blockvault.nbd.peer import Peer
from blockvault.nbd.wire import MAX_PAYLOAD
from tests.nbd.memory import MemoryCatalogue, MemoryVolume
from tests.nbd.messages import GREETING


class ScriptSocket:
    """Gives out ``parts`` one after the other, then ends; keeps what is sent."""

    family = socket.AF_UNIX

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = [part for part in parts if part]
        self._parts.reverse()
        self._lock = threading.Lock()
        self.sent = bytearray()
        self.closed = False

    def fileno(self) -> int:
        """Any descriptor: it is only looked at."""
        return 0

    def recv_into(self, view: memoryview) -> int:
        with self._lock:
            if not self._parts or self.closed:
                return 0
            part = self._parts.pop()
            taken = part[: len(view)]
            view[: len(taken)] = taken
            if len(taken) < len(part):
                self._parts.append(part[len(taken) :])
            return len(taken)

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def sendmsg(self, pieces: list[bytes]) -> int:
        self.sent += b"".join(pieces)
        return sum(map(len, pieces))

    def getsockopt(self, level: int, name: int, size: int) -> bytes:
        return struct.pack("3i", 4711, 1000, 1000)

    def setsockopt(self, level: int, name: int, value: int) -> None:
        assert value > 0

    def settimeout(self, seconds: float | None) -> None:
        assert seconds is None or seconds > 0

    def setblocking(self, value: bool) -> None:
        assert value

    def shutdown(self, how: int) -> None:
        if how == socket.SHUT_RDWR:
            self.closed = True

    def close(self) -> None:
        self.closed = True


def play(parts: Iterable[bytes], *volumes: MemoryVolume, exports: Exports | None = None) -> bytes:
    """Run one whole session; return what the server said after its greeting."""
    script = ScriptSocket(parts)
    served = exports if exports is not None else Exports(MemoryCatalogue(*volumes))
    peer = Peer(script, served, Budget(MAX_PAYLOAD), tls=None, handshake_seconds=10)  # type: ignore[arg-type]
    peer.run()
    assert script.closed
    assert bytes(script.sent[:18]) == GREETING
    return bytes(script.sent[18:])
