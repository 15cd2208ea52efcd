"""The guest's agent as a peer that is late, that never comes to an end, or that says nonsense."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blockvault.errors import ToolFailed
from blockvault.vm.agent import Agent, frozen, thaw

SOON = 0.1
Talk = Callable[["Guest"], None]


class Guest:
    """The other end of the port; ``talk`` is what it does with who connects."""

    def __init__(self, path: Path, talk: Talk) -> None:
        self.path = path
        self.heard: list[str] = []
        self._talk = talk
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connected, _ = self._listener.accept()
        with connected, connected.makefile("rb") as self._lines, contextlib.suppress(OSError):
            self._socket = connected
            self._talk(self)

    def hear(self) -> dict[str, Any]:
        """The next request; an empty one when there will be none."""
        line = self._lines.readline()
        request: dict[str, Any] = json.loads(line) if line else {}
        self.heard.append(request.get("execute", ""))
        return request

    def say(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self, value: Any) -> None:
        self.say(json.dumps({"return": value}).encode() + b"\n")

    def sync(self) -> None:
        self.answer(self.hear()["arguments"]["id"])

    def close(self) -> list[str]:
        """All that was heard."""
        self._thread.join(10)
        self._listener.close()
        return self.heard


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Callable[[Talk], Guest]]:
    made: list[Guest] = []

    def start(talk: Talk) -> Guest:
        made.append(Guest(tmp_path / "agent", talk))
        return made[-1]

    yield start
    for each in made:
        each.close()


def obeys_once(guest: Guest) -> None:
    """Do one thing that it is asked for, and say that it is done."""
    guest.sync()
    guest.hear()
    guest.answer(2)


def until_it_is_late(guest: Guest, data: bytes) -> None:
    """Say something again and again, and what was asked for when the deadline is long over."""
    number = guest.hear()["arguments"]["id"]
    end = time.monotonic() + 20 * SOON
    while time.monotonic() < end:
        guest.say(data)
    guest.say(b"\n")
    guest.answer(number)


@pytest.mark.parametrize("data", [b"{}\n" * 5000, b"[" * 5000 + b"\n"], ids=["wrong", "nonsense"])
def test_wrong_answers_do_not_put_the_deadline_off(
    guest: Callable[[Talk], Guest], data: bytes
) -> None:
    path = guest(lambda it: until_it_is_late(it, data)).path
    with pytest.raises(ToolFailed, match="timed out") as caught:
        Agent(path, SOON)
    assert caught.value.reason == "no-agent"


def test_an_answer_without_end_is_not_kept(guest: Callable[[Talk], Guest]) -> None:
    def talk(it: Guest) -> None:
        number = it.hear()["arguments"]["id"]
        it.say(b"x" * (2 << 20) + b"\n")
        it.answer(number)

    with pytest.raises(ToolFailed, match="says too much") as caught:
        Agent(guest(talk).path)
    assert caught.value.reason == "no-agent"


def test_a_freeze_that_takes_too_long_is_followed_by_a_thaw(
    guest: Callable[[Talk], Guest], tmp_path: Path
) -> None:
    def talk(it: Guest) -> None:
        it.sync()
        it.hear()
        if it.hear():  # whoever asked for a freeze has given up by now
            it.answer(2)
            it.answer(2)

    its, mark = guest(talk), tmp_path / "frozen"
    with (
        pytest.raises(ToolFailed, match=f"freeze in {SOON:g} s") as caught,
        frozen(its.path, mark, SOON),
    ):
        pytest.fail("nothing was frozen")
    assert not mark.exists(), "it has told that it thawed"
    assert caught.value.reason == "no-agent"
    assert its.close() == ["guest-sync", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]


def test_whatever_happens_meanwhile_the_guest_is_thawed(
    guest: Callable[[Talk], Guest], tmp_path: Path
) -> None:
    def talk(it: Guest) -> None:
        it.sync()
        while it.hear():
            it.answer(2)

    its, mark = guest(talk), tmp_path / "frozen"
    with pytest.raises(KeyError), frozen(its.path, mark):
        raise KeyError
    assert not mark.exists()
    assert its.close() == ["guest-sync", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw", ""]


def test_a_guest_is_thawed_by_who_finds_the_mark(
    guest: Callable[[Talk], Guest], tmp_path: Path
) -> None:
    """As after the death of who froze it: the block never comes to its end."""
    its, mark = guest(obeys_once), tmp_path / "frozen"
    thaw(its.path, mark)
    assert not its.heard, "without the mark it is let alone"
    mark.touch()
    thaw(its.path, mark)
    assert not mark.exists()
    assert its.close() == ["guest-sync", "guest-fsfreeze-thaw"]


def test_the_mark_stays_until_the_guest_has_thawed(
    guest: Callable[[Talk], Guest], tmp_path: Path
) -> None:
    def talk(it: Guest) -> None:
        obeys_once(it)
        it.hear()  # and hangs up instead of an answer

    mark = tmp_path / "frozen"
    with pytest.raises(ToolFailed), frozen(guest(talk).path, mark):
        assert mark.exists()
    assert mark.exists()


def test_an_answer_that_is_late_is_not_taken_for_another(guest: Callable[[Talk], Guest]) -> None:
    def talk(it: Guest) -> None:
        it.sync()
        it.hear()
        it.hear()
        it.answer("late")
        it.answer("in time")

    with contextlib.closing(Agent(guest(talk).path)) as agent:
        with pytest.raises(ToolFailed):
            agent.execute("guest-slow", seconds=SOON)
        assert agent.execute("guest-quick") == "in time"
