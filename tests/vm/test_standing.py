"""A machine that runs, against a monitor that refuses and stalls: the guest goes on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blockvault import Vault
from blockvault.errors import Busy, Conflict, ToolFailed
from blockvault.vm import handover, state
from blockvault.vm.orders import Orders
from tests.vm.pretended import Pretended, foreign, refused, running, stalled, supervisor


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
        machine = supervisor(vault, tmp_path, monitor)
        assert machine.running is not None
        target: Any = None
        with pytest.raises(ToolFailed) as caught:
            machine._rewind(machine.running, target, "main")
        assert not machine.run_dir.unsound.exists()
    assert caught.value.reason == "qemu-stalled"
    assert monitor.said[-2:] == ["stop", "cont"]


def test_who_wants_to_switch_off_does_not_wait_for_who_asks_politely(tmp_path: Path) -> None:
    pressed = threading.Event()

    def deaf(command: str, arguments: Mapping[str, Any]) -> Any:
        if command == "system_powerdown":
            pressed.set()
        return {"status": "running"}

    with Vault.create(tmp_path) as vault, ThreadPoolExecutor() as pool:
        stop = Orders(supervisor(vault, tmp_path, Pretended(deaf))).handlers()["vm-stop"]
        with pytest.raises(Busy) as caught:
            stop({"seconds": 0})
        assert caught.value.reason == "guest-busy"
        pressed.clear()
        asking = pool.submit(stop, {"seconds": 10})
        assert pressed.wait(5)
        switched_off = pool.submit(stop, {"force": True}).result(5)
        assert switched_off == {"ended": "it was switched off"}
        assert asking.result(5) == switched_off


def test_a_guest_that_shuts_down_is_not_waited_for_any_longer(tmp_path: Path) -> None:
    def obedient(command: str, arguments: Mapping[str, Any]) -> Any:
        if command == "system_powerdown":
            monitor.process.kill()
        return {"status": "running"}

    monitor = Pretended(obedient)
    with Vault.create(tmp_path) as vault, ThreadPoolExecutor() as pool:
        machine = supervisor(vault, tmp_path, monitor)
        watching = pool.submit(machine.run)
        asking = pool.submit(Orders(machine).handlers()["vm-stop"], {"seconds": 60})
        assert asking.result(10) == {"ended": "it is gone"}
        assert watching.result(10) == "it is gone"


def test_devices_that_nobody_saved_are_not_taken_from_another_moment(tmp_path: Path) -> None:
    machine = running(tmp_path, Pretended(lambda *_: {"status": state.SAVED}))
    machine.devices = b"of now"
    assert state._devices(machine, state.SAVED) == b"of now"
    machine._heard("RESUME", {})
    with pytest.raises(Conflict) as caught:
        state._devices(machine, state.SAVED)
    assert caught.value.reason == "saved-once"
