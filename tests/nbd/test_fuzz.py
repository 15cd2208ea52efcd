"""Mutated sessions and option orders: no crash, no hang, bounded memory, others undisturbed.

Every session is a well-formed conversation that was then spoilt: bytes flipped, messages left out,
repeated, swapped, cut, lengths and numbers replaced by extreme ones, and sent in pieces of random
size.  Most run against the program without sockets; some against a real server, beside a client
that must not notice.  A failing session is told by its number: as the seed of another run it comes
first there.
"""

from __future__ import annotations

import logging
import random
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from blockvault.nbd.exports import Exports
from tests.nbd import messages as m
from tests.nbd.conftest import Client
from tests.nbd.memory import BatchMemoryDevice, MemoryCatalogue, MemoryDevice, MemoryVolume
from tests.nbd.script import play

SESSIONS = 20_000
NIGHTLY_SESSIONS = 1_000_000
SOCKET_SESSIONS = 300
SIZE = 1 << 20
HANG_SECONDS = 2.0
MEMORY_BYTES = 256 << 20
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

NAMES = ("vda", "old", "", "nobody", "x" * 5000, "é", "\0")
QUERIES = ("base:allocation", "base:", "blockvault:", "blockvault:diff:v1", "q", "", "y" * 300)


def an_option(rng: random.Random) -> bytes:
    number = rng.choice([*range(12), *[m.LIST, m.INFO, m.STRUCTURED, m.LIST_META, m.SET_META] * 3])
    if number in (m.GO, m.INFO):
        infos = [rng.randrange(5) for _ in range(rng.randrange(4))]
        return m.option(number, m.info_data(rng.choice(NAMES), *infos))
    if number in (m.LIST_META, m.SET_META):
        queries = rng.choices(QUERIES, k=rng.randrange(4))
        return m.option(number, m.meta_data(rng.choice(NAMES), *queries))
    if number == m.EXPORT_NAME:
        return m.option(number, rng.choice(NAMES).encode())
    return m.option(number, rng.choice([b"", b"", b"x" * rng.randrange(50)]))


def a_request(rng: random.Random) -> bytes:
    command = rng.choice([*range(10), m.READ, m.WRITE, m.STATUS])
    length = rng.choice([0, 1, 512, 4096, rng.randrange(100_000)])
    offset = rng.choice([0, rng.randrange(SIZE), SIZE - length, SIZE, (1 << 64) - 1])
    flags = rng.choice([0, 0, 0, 1 << rng.randrange(16), rng.randrange(1 << 16)])
    data = bytes(length) if command == m.WRITE else b""
    if command == m.FLUSH and rng.random() < 0.8:
        offset = length = flags = 0
    return m.request(command, offset, length, flags=flags, cookie=rng.getrandbits(64), data=data)


def a_session(rng: random.Random) -> list[bytes]:
    parts = [m.client_flags(rng.choice([3] * 12 + [1, 1, 0, 2]))]
    parts += [an_option(rng) for _ in range(rng.choice([0, 0, 1, 3]))]
    if rng.random() < 0.9:
        parts += [m.option(m.STRUCTURED)] * (rng.random() < 0.8)
        parts += [m.option(m.SET_META, m.meta_data("vda", "base:allocation", "blockvault:diff:v1"))]
        parts += [m.go(rng.choice(["vda", "vda", "old"]), 3)]
    parts += [a_request(rng) for _ in range(rng.randrange(12))]
    return parts


def spoil(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        # The handshake is short and every fault there ends the session: spoil it less often.
        place = int(len(parts) * rng.random() ** 0.4)
        kind = rng.randrange(6)
        if kind == 0:
            parts[place] = flipped(rng, parts[place])
        elif kind == 1 and len(parts) > 1:
            del parts[place]
        elif kind == 2:
            parts.insert(rng.randrange(len(parts) + 1), parts[place])
        elif kind == 3:
            other = rng.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        elif kind == 4:
            parts[place] = parts[place][: rng.randrange(len(parts[place]) + 1)]
        else:
            parts[place] = with_extreme(rng, parts[place])
    return parts


def flipped(rng: random.Random, part: bytes) -> bytes:
    raw = bytearray(part)
    for _ in range(rng.choice([1, 1, 3])):
        if raw:
            raw[rng.randrange(min(len(raw), 64))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def with_extreme(rng: random.Random, part: bytes) -> bytes:
    """One aligned 4-byte field near the front replaced by an extreme number."""
    place = 4 * rng.randrange(8)
    if place + 4 > len(part):
        return part
    return part[:place] + struct.pack(">I", rng.choice(EXTREMES)) + part[place + 4 :]


def in_pieces(rng: random.Random, stream: bytes) -> Iterator[bytes]:
    size = max(rng.choice([1 << 20, 1 << 20, 4096, 100, 7]), len(stream) // 200)
    for start in range(0, len(stream), size):
        yield stream[start : start + size]


class Faults(logging.Handler):
    """Collects what the program logs as a fault of its own: an exception that nobody expected."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


@pytest.fixture
def faults() -> Iterator[Faults]:
    handler = Faults()
    logger = logging.getLogger("blockvault.nbd")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def volumes() -> tuple[MemoryVolume, MemoryVolume]:
    writable = MemoryVolume("vda", Quick(SIZE))
    writable.differing["v1"] = [(0, 4096, True), (8192, 100, False)]
    return writable, MemoryVolume("old", Quick(SIZE, read_only=True))


class Quick(BatchMemoryDevice):
    """Extents at the price of a constant: fuzzing is about the protocol."""

    def extents(self, offset: int, length: int) -> Iterator[Any]:
        half = length // 2
        yield from MemoryDevice.extents(self, offset, min(half, 10_000))

    def flush(self) -> None:
        self.flushes += 1

    def _called(self, what: str, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self.size, f"{what} {offset}+{length}"


class Hung(BaseException):
    """What is no ``Exception`` is not answered by the program, but ends it."""


@pytest.fixture
def alarm() -> Iterator[None]:
    """A session that takes too long ends with ``Hung``, whatever it waits for."""

    def ring(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.signal(signal.SIGALRM, before)


@contextmanager
def told(session: int) -> Iterator[None]:
    """Name the session that fails or hangs."""
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS, HANG_SECONDS)
    try:
        yield
    except (Exception, Hung) as error:
        raise AssertionError(f"session {session}: {error!r}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_session_that_hangs_is_told(alarm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: one that waits for what never comes."""

    def stuck(what: str, offset: int, length: int) -> None:
        if what == "read":
            threading.Event().wait()

    monkeypatch.setattr(sys.modules[__name__], "HANG_SECONDS", 0.02)
    volume = MemoryVolume("vda", MemoryDevice(SIZE))
    volume.device.fault = stuck
    with pytest.raises(AssertionError, match="session 7: Hung"), told(7):
        play([m.client_flags() + m.go("vda") + m.request(m.READ, 0, 512)], volume)


def test_spoilt_sessions_without_sockets(
    nightly: bool, faults: Faults, alarm: None, seed: int
) -> None:
    exports = Exports(MemoryCatalogue(*volumes()))
    entered = refused = 0
    before = peak_memory()
    for session in range(seed, seed + (NIGHTLY_SESSIONS if nightly else SESSIONS)):
        rng = random.Random(session)
        stream = b"".join(spoil(rng, a_session(rng)))
        with told(session):
            sent = play(in_pieces(rng, stream), exports=exports)
            assert not faults.found, faults.found[0]
            assert not exports.open_exports(), "an export stays open"
            assert len(sent) < 64 << 20
        entered += b"\x67\x44\x66\x98" in sent or b"\x66\x8e\x33\xef" in sent
        refused += b"\x80\x00\x00" in sent
    assert peak_memory() - before < MEMORY_BYTES
    assert entered > SESSIONS // 3, "most sessions must get as far as requests"
    assert refused > SESSIONS // 10


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_spoilt_sessions_on_sockets_beside_a_witness(
    connect: Callable[..., Client], faults: Faults, volume: MemoryVolume, seed: int
) -> None:
    witness = connect().enter()
    answered: list[bool] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            data = random.randbytes(512)
            assert witness.ask(m.write(7 << 20, data)) == (0, b"")
            answered.append(witness.ask(m.request(m.READ, 7 << 20, 512), 512) == (0, data))
            time.sleep(0.001)

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        for session in range(seed, seed + SOCKET_SESSIONS):
            rng = random.Random(session)
            client, stream = connect(greet=False), b"".join(spoil(rng, a_session(rng)))
            if rng.random() < 0.7:
                assert taken_whole(client, stream), f"session {session}: no answer and no end"
            else:
                left_in_the_middle(client, stream)
            assert not faults.found, f"session {session}: {faults.found[0]}"
    finally:
        stop.set()
        thread.join()
    assert len(answered) > 20
    assert all(answered)


def taken_whole(client: Client, stream: bytes) -> bool:
    """Send all and read all; whether the server comes to an end of it in time."""

    def send() -> None:
        with suppress(OSError):  # the server was right to leave
            client.socket.sendall(stream)
            client.socket.shutdown(socket.SHUT_WR)

    sending = threading.Thread(target=send)
    sending.start()
    try:
        while client.socket.recv(1 << 20):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    finally:
        sending.join()
        client.close()
    return True


def left_in_the_middle(client: Client, stream: bytes) -> None:
    """Send what the server takes, and read nothing."""
    client.socket.setblocking(False)
    with suppress(OSError):
        client.socket.send(stream)
    client.close()
