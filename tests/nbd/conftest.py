"""A running server over a volume in memory, and plain sockets to talk to it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from blockvault.nbd.exports import Exports, GroupFlush
from blockvault.nbd.server import Server
from tests.nbd import messages as m
from tests.nbd.memory import BatchMemoryDevice, MemoryCatalogue, MemoryVolume

SIZE = 8 << 20


class Client:
    """A socket that has greeted, with the calls that a test needs."""

    def __init__(self, path: Path, *, greet: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        if greet:
            assert self.receive(18) == m.GREETING
            self.socket.sendall(m.client_flags())

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError(f"ended after {len(data)} of {size} bytes")
            data += more
        return data

    def at_end(self) -> bool:
        """Whether the server has closed the connection (waits for it)."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def enter(self, name: str = "vda") -> Client:
        """Choose an export; replies are simple from here on."""
        self.socket.sendall(m.option(m.EXPORT_NAME, name.encode()))
        self.receive(10)
        return self

    def ask(self, request: bytes, length: int = 0) -> tuple[int, bytes]:
        """Send one request and wait for its simple reply: errno and data."""
        self.socket.sendall(request)
        return self.reply(length)

    def reply(self, length: int = 0) -> tuple[int, bytes]:
        head = self.receive(16)
        errno = int.from_bytes(head[4:8], "big")
        return errno, b"" if errno else self.receive(length)

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def volume() -> MemoryVolume:
    return MemoryVolume("vda", BatchMemoryDevice(SIZE), "a disk")


class SlowFlush(NamedTuple):
    """``begun`` is set when a flush of the volume begins; it ends when ``proceed`` is."""

    begun: threading.Event
    proceed: threading.Event


@pytest.fixture
def slow_flush(volume: MemoryVolume) -> Iterator[SlowFlush]:
    slow = SlowFlush(threading.Event(), threading.Event())

    def flush(what: str, offset: int, length: int) -> None:
        if what == "flush":
            slow.begun.set()
            assert slow.proceed.wait(10)

    volume.device.fault = flush
    yield slow
    slow.proceed.set()


@pytest.fixture
def exports(volume: MemoryVolume) -> Exports:
    return Exports(MemoryCatalogue(volume))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nbd.sock"


@pytest.fixture
def handshake_seconds() -> float:
    """Far more than a client takes on a busy machine; tests of the deadline have their own."""
    return 30.0


@pytest.fixture
def server(exports: Exports, path: Path, handshake_seconds: float) -> Iterator[Server]:
    running = Server(exports, handshake_seconds=handshake_seconds)
    running.listen_unix(path)
    yield running
    running.stop(1.0)


@pytest.fixture
def connect_to() -> Iterator[Callable[..., Client]]:
    """``connect_to(path)`` gives a new client; all are closed after the test."""
    clients: list[Client] = []

    def new(path: Path, *, greet: bool = True) -> Client:
        clients.append(Client(path, greet=greet))
        return clients[-1]

    yield new
    for client in clients:
        client.close()


@pytest.fixture
def connect(server: Server, path: Path, connect_to: Callable[..., Client]) -> Callable[..., Client]:
    """``connect()`` gives a new client of ``server``."""
    return lambda *, greet=True: connect_to(path, greet=greet)


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Return as soon as ``condition`` holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def waiting(group: GroupFlush) -> int:
    """How many wait for a flush that somebody else makes."""
    return len(group._changed._waiters)  # type: ignore[attr-defined]
