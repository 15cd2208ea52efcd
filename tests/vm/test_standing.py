"""A machine that runs, against a monitor that refuses and stalls: the guest goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blockvault import Vault
from blockvault.errors import ToolFailed
from blockvault.vm import handover
from blockvault.vm.planning import How
from blockvault.vm.supervisor import Supervisor
from tests.vm.pretended import Pretended, Served, foreign, refused, running, stalled


class Ending:
    """A QEMU that ends a migration while it is told twice to go on."""

    def __init__(self) -> None:
        self.left = 2

    def __call__(self, command: str, arguments: Mapping[str, Any]) -> Any:
        if command == "cont" and self.left:
            self.left -= 1
            raise refused(command, "Migration is not finalized yet")
        return {"status": "running"}


def test_a_guest_goes_on_after_a_snapshot_that_failed_too_early_for_qemu(tmp_path: Path) -> None:
    monitor = Pretended(Ending())
    machine = running(tmp_path, monitor)
    with pytest.raises(KeyError), machine.paused():
        raise KeyError("the first error is the one that is told")
    assert monitor.said == ["query-status", "stop", "cont", "cont", "cont"]
    assert not machine.run.standing.exists()


def test_so_does_one_of_somebody_elses() -> None:
    monitor = Pretended(Ending())
    foreign(monitor).resume()
    assert monitor.said[-3:] == ["cont"] * 3


def test_any_other_refusal_to_go_on_is_told_at_once(tmp_path: Path) -> None:
    def answer(command: str, arguments: Mapping[str, Any]) -> Any:
        raise refused(command, "Resetting the Virtual Machine is required")

    monitor = Pretended(answer)
    with pytest.raises(ToolFailed, match="Resetting"):
        running(tmp_path, monitor).resume()
    assert monitor.said == ["cont"]


# QEMU obeys later what it did not answer in time, one order after the other.


def stands_late(command: str, arguments: Mapping[str, Any]) -> Any:
    if command == "stop":
        raise stalled()
    return {"status": "running"}


def test_a_guest_whose_disks_cannot_be_taken_does_not_stand_later() -> None:
    monitor = Pretended(stands_late)
    disks = SimpleNamespace(begin=lambda: None)
    with pytest.raises(ToolFailed) as caught:
        handover.take_disks(foreign(monitor), disks, "", None)  # type: ignore[arg-type]
    assert caught.value.reason == "qemu-stalled"
    assert monitor.said[-2:] == ["stop", "cont"]


def test_a_guest_that_cannot_be_rolled_back_does_not_stand_later(tmp_path: Path) -> None:
    monitor = Pretended(stands_late)
    with Vault.create(tmp_path) as vault:
        supervisor = Supervisor(
            vault, "main", tmp_path / "run", lambda *_: Served(), lambda _: tmp_path, How()
        )
        supervisor.served = Served()
        target: Any = None
        with pytest.raises(ToolFailed) as caught:
            supervisor._rewind(running(tmp_path, monitor), target, "main")
    assert caught.value.reason == "qemu-stalled"
    assert monitor.said[-2:] == ["stop", "cont"]
    assert not supervisor.run_dir.unsound.exists()
