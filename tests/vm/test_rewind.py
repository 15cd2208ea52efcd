"""Going back inside of a QEMU fails half-way: no guest goes on with one half of each state."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blockvault import Vault
from blockvault.errors import IOFailed
from blockvault.vm import rewind
from tests.vm.pretended import Pretended, Served, running, supervisor

NO_ROOM = os.strerror(errno.ENOSPC)
TARGET: Any = None


def runs(command: str, arguments: Mapping[str, Any]) -> Any:
    return {"status": "running"}


def test_no_room_for_the_devices_takes_a_new_qemu(lab: Any) -> None:
    lab.create()
    console = lab.start()
    console.run("echo then >/disk/f; sync; echo then >/run/f")
    made = lab.snapshot()
    console.run("echo now >/disk/f; sync; echo now >/run/f")
    before = lab.status()["qemu"]
    (saved,) = (each / "saved" for each in lab.runtime.glob("*-*/"))
    saved.symlink_to("/dev/full")
    assert "resumed" in lab.run("vm", "rollback", "main", made["id"])
    assert lab.status()["qemu"] != before
    assert lab.console().run("cat /disk/f /run/f") == "then\nthen"


def test_a_machine_that_can_neither_go_back_nor_start_anew_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, NO_ROOM)

    monitor = Pretended(runs)
    with Vault.create(tmp_path) as vault:
        machine = supervisor(vault, tmp_path, monitor)
        assert machine.running is not None
        monkeypatch.setattr(rewind, "rewind", fail)
        monkeypatch.setattr(machine, "_move_branch", lambda *_: None)
        monkeypatch.setattr(machine.running.session, "close", fail)
        with pytest.raises(OSError, match=NO_ROOM):
            machine._rewind(machine.running, TARGET, "main")
        assert NO_ROOM in str(machine.wait(0))
    assert "cont" not in monitor.said


def test_a_branch_that_was_moved_and_is_not_served_is_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise IOFailed("there are no threads left")

    monitor = Pretended(runs)
    served = Served()
    monkeypatch.setattr(served, "begin", fail)
    with Vault.create(tmp_path) as vault:
        machine = supervisor(vault, tmp_path, monitor)
        assert machine.running is not None
        monkeypatch.setattr(machine, "_serve", lambda *_: served)
        with pytest.raises(IOFailed, match="no threads"):
            machine._rewind(machine.running, TARGET, "main")
        assert "no threads" in str(machine.wait(0))
    assert "cont" not in monitor.said


@pytest.mark.parametrize("place", [1 << 20, (1 << 63) + 1, (1 << 64) - 1])
def test_a_generation_id_that_the_guest_wants_where_no_memory_is(
    tmp_path: Path, place: int
) -> None:
    monitor = Pretended(lambda *_: {"guid": "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"})
    machine = running(tmp_path, monitor)
    machine.machine = SimpleNamespace(memory=1 << 20)  # type: ignore[assignment]
    machine.run.memory.write_bytes(b"m" * (1 << 20))
    rewind._renew(machine, rewind._SECTION + place.to_bytes(8, "little"))
    assert machine.run.memory.read_bytes() == b"m" * (1 << 20)
