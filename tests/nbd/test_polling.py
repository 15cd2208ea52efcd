"""A look at a socket before a thread sleeps on it: found, given up, ever less often, in turns."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from blockvault.nbd import polling
from blockvault.nbd.polling import MOST_SKIPPED, Poller
from tests.nbd import messages as m
from tests.nbd.conftest import Client


@pytest.fixture(autouse=True)
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_SEVERAL", True)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def looks(monkeypatch: pytest.MonkeyPatch, *, found: bool) -> list[bool]:
    """Lets each look end so; gets one entry for each."""
    made: list[bool] = []

    def look(poller: Poller) -> bool:
        made.append(found)
        return found

    monkeypatch.setattr(Poller, "_look", look)
    return made


def test_it_tells_whether_there_is_something(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    assert not Poller(ours).look()
    theirs.sendall(b"x")
    assert Poller(ours).look()
    ours.recv(1)
    theirs.close()
    assert Poller(ours).look(), "the end is something to receive too"


def test_who_finds_nothing_looks_ever_less_often(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = looks(monkeypatch, found=False)
    poller = Poller(pair[0])
    assert not any(poller.look() for _ in range(1 + 2 + 4 + 8))
    assert len(made) == 4
    for _ in range(100 * (MOST_SKIPPED + 1)):
        poller.look()
    assert 100 <= len(made) <= 110


def test_who_finds_something_looks_each_time_again(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks(monkeypatch, found=False)
    poller = Poller(pair[0])
    for _ in range(20):
        poller.look()
    made = looks(monkeypatch, found=True)
    for _ in range(MOST_SKIPPED + 20):
        poller.look()
    assert len(made) >= 20


def test_one_thread_looks_at_a_time(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = looks(monkeypatch, found=True)
    with polling._turn:
        assert not Poller(pair[0]).look()
    assert not made
    assert Poller(pair[0]).look()


def test_none_looks_where_the_client_needs_the_processor(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = looks(monkeypatch, found=True)
    monkeypatch.setattr(polling, "_SEVERAL", False)
    assert not Poller(pair[0]).look()
    assert not made


def test_only_after_single_reads(
    connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = looks(monkeypatch, found=True)
    client = connect().enter()
    client.ask(m.write(0, b"hello"))
    client.ask(m.request(m.FLUSH))
    assert not made
    for _ in range(3):
        assert client.ask(m.request(m.READ, 0, 5), 5) == (0, b"hello")
    client.ask(m.write(0, b"hello"))
    client.socket.sendall(2 * m.request(m.READ, 0, 5))
    client.receive(2 * (16 + 5))
    assert len(made) == 3
