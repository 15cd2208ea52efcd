"""A guest that is taken over, with a monitor of ours for QEMU's."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blockvault import Vault
from blockvault.errors import ToolFailed
from blockvault.vm.machine import Machine
from blockvault.vm.process import Qemu
from blockvault.vm.rundir import RunDir
from blockvault.vm.running import Running
from tests.vm.test_agent import Guest, obeys_once
from tests.vm.test_qmp import Peer

STAMP = {"seconds": 1, "microseconds": 0}


class Lost:
    """A machine whose supervisor died with writes that nobody else had."""

    def __init__(self, path: Path) -> None:
        self.vault = Vault.create(path / "vault")
        self.session = self.vault.session()
        self.run = RunDir(path / "r", self.vault.options.vault_id, 2, self.vault.path)
        self.run.make()
        self.order: list[str] = []
        self.served = threading.Event()
        self.refuses_reset = False
        self.peers: list[Peer] = []
        with self.session.keep() as keep:
            self.qemu = Qemu.start(["sleep", "60"], self.run.qemu_log, keep)
        self._first = self.successor()
        self.session.unstored[0] = 1

    def successor(self) -> Running:
        return Running(self.vault, self.session, self.run, Machine(memory=16 << 20), "tcg")

    def adopt(self) -> str:
        self.run.qmp.unlink(missing_ok=True)
        self.peers.append(Peer(self.run.qmp, self.answer))
        running = self.successor()
        try:
            return running.adopt(Qemu.find(self.qemu.process, self.run.qemu_log), self.serve)
        finally:
            running.close()

    def serve(self) -> None:
        self.order.append("served")
        self.served.set()

    def answer(self, request: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """As QEMU does, which waits for its disks when it stops."""
        name = request["execute"]
        self.order.append(name)
        if name == "stop":
            yield {"event": "STOP", "timestamp": STAMP}
            assert self.served.wait(10)
        if name == "system_reset" and self.refuses_reset:
            yield {"error": {"class": "GenericError", "desc": "died"}, "id": request["id"]}
            return
        if name == "system_reset":
            yield {"event": "RESET", "data": {}, "timestamp": STAMP}
        value = {"status": "running"} if name == "query-status" else {}
        yield {"return": value, "id": request["id"]}

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.qemu.kill()
        self.qemu.close()
        self.session.close()
        self.vault.close()


@pytest.fixture
def lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lost]:
    monkeypatch.setattr("blockvault.vm.running._HALT_SECONDS", 60.0)
    made = Lost(tmp_path)
    yield made
    made.close()


def test_a_guest_that_lost_writes_stands_before_its_disks_answer(lost: Lost) -> None:
    """Else a flush that QEMU repeats succeeds, and the guest goes on from there for a moment."""
    assert "power cut" in lost.adopt()
    assert lost.order == ["query-status", "stop", "served", "system_reset", "cont"]


def test_a_death_before_the_reset_is_not_the_end_of_it(lost: Lost) -> None:
    lost.refuses_reset = True
    with pytest.raises(ToolFailed):
        lost.adopt()
    lost.refuses_reset = False
    assert "power cut" in lost.adopt()
    assert "nothing was lost" in lost.adopt(), "and after it there is nothing to be done"
    assert lost.order[-2:] == ["served", "query-status"]


def test_file_systems_that_the_dead_process_froze_are_thawed(lost: Lost) -> None:
    lost.adopt()
    lost.run.frozen.touch()
    its = Guest(lost.run.agent, obeys_once)
    assert lost.adopt().endswith("nothing was lost")
    assert its.close() == ["guest-sync", "guest-fsfreeze-thaw"]
    assert not lost.run.frozen.exists()


def test_a_guest_whose_agent_is_silent_is_said_to_be_frozen(lost: Lost) -> None:
    lost.adopt()
    lost.run.frozen.touch()
    assert lost.adopt().endswith("its file systems may still be frozen: its agent does not answer")
    assert lost.run.frozen.exists(), "who takes it over next tries again"


def test_a_reset_guest_is_not_frozen(lost: Lost) -> None:
    lost.run.frozen.touch()
    assert "power cut" in lost.adopt()
    assert not lost.run.frozen.exists()
