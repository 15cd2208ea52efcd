"""The monitor against a peer that stalls, refuses, speaks out of turn and goes away."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blockvault.errors import ToolFailed
from blockvault.vm.qmp import Monitor

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}
Answer = Callable[[dict[str, Any]], Iterable[dict[str, Any]] | None]


class Peer:
    """A QEMU of sorts: ``answer`` maps a request to what is sent; None hangs up."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.answer = answer
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        connected, _ = self.listener.accept()
        with connected:
            self.send(connected, GREETING)
            # A request is an object and needs no end of line; each waits for its answer.
            while data := connected.recv(65536):
                request = json.loads(data)
                if request["execute"] == "qmp_capabilities":
                    self.send(connected, {"return": {}})  # the greeting's answer has no id
                    continue
                answers = self.answer(request)
                if answers is None:
                    return
                for answer in answers:
                    self.send(connected, answer)

    @staticmethod
    def send(connected: socket.socket, value: dict[str, Any]) -> None:
        connected.sendall(json.dumps(value).encode() + b"\r\n")

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[[Answer], Path]]:
    made: list[Peer] = []

    def make(answer: Answer) -> Path:
        made.append(Peer(tmp_path / "qmp", answer))
        return made[-1].path

    yield make
    for each in made:
        each.close()


def test_answers_and_events(peer: Callable[[Answer], Path]) -> None:
    heard: list[tuple[str, Any]] = []
    event = {"event": "STOP", "data": {"a": 1}, "timestamp": {"seconds": 1, "microseconds": 0}}
    path = peer(lambda r: [event, {"return": r.get("arguments", {}), "id": r["id"]}])
    with Monitor(path, listener=lambda name, data: heard.append((name, dict(data)))) as monitor:
        assert monitor.execute("device_add", bus_name="pci") == {"bus-name": "pci"}
        assert monitor.send("x", {"bus_name": "pci"}) == {"bus_name": "pci"}
        deadline = time.monotonic() + 5
        while not heard and time.monotonic() < deadline:
            time.sleep(0.01)
    assert ("STOP", {"a": 1}) in heard
    assert heard[-1] == ("", {})


def test_a_refusal_is_told(peer: Callable[[Answer], Path]) -> None:
    path = peer(lambda r: [{"error": {"class": "GenericError", "desc": "not now"}, "id": r["id"]}])
    with Monitor(path) as monitor, pytest.raises(ToolFailed, match="not now") as caught:
        monitor.execute("migrate")
    assert caught.value.reason == "qemu-refused"


def test_a_stalled_monitor_is_an_error_in_time(peer: Callable[[Answer], Path]) -> None:
    with Monitor(peer(lambda r: [])) as monitor:
        began = time.monotonic()
        with pytest.raises(ToolFailed) as caught:
            monitor.execute("stop", timeout=0.2)
        assert time.monotonic() - began < 3
    assert caught.value.reason == "qemu-stalled"


def test_a_peer_that_hangs_up(peer: Callable[[Answer], Path]) -> None:
    with Monitor(peer(lambda r: None)) as monitor, pytest.raises(ToolFailed) as caught:
        monitor.execute("stop")
    assert caught.value.reason == "qemu-gone"


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed) as caught:
        Monitor(tmp_path / "none", timeout=0.2)
    assert caught.value.reason == "qemu-stalled"


def test_waiting_has_an_end(peer: Callable[[Answer], Path]) -> None:
    path = peer(lambda r: [{"return": {"status": "running"}, "id": r["id"]}])
    with Monitor(path) as monitor:
        assert monitor.status() == "running"
        assert monitor.wait_for(lambda: 7, "seven") == 7
        with pytest.raises(ToolFailed, match="did not get to the end"):
            monitor.wait_for(lambda: None, "the end", timeout=0.05)
