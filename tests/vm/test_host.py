"""What a host offers: room for memory."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from blockvault.errors import NoSpace
from blockvault.vm import host
from blockvault.vm.rundir import Process, RunDir, State

MIB = 1 << 20
RUNS, GONE = Process.of(os.getpid()), Process(0, 0)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory where 8 MiB are free."""
    monkeypatch.setattr(host, "filesystem", lambda folder: "tmpfs")
    room = SimpleNamespace(f_bavail=8 * MIB // 4096, f_frsize=4096, f_blocks=1)
    monkeypatch.setattr(os, "statvfs", lambda folder: room)
    return tmp_path


def machine(base: Path, branch: int, state: State | None) -> Path:
    """A machine of 4 MiB whose guest has used nothing yet; its memory."""
    run = RunDir(base, bytes(16), branch, base)
    run.make()
    with open(run.memory, "wb") as memory:
        memory.truncate(4 * MIB)
    if state is not None:
        run.save(state)
    return run.memory


def test_memory_that_guests_have_not_used_yet_is_theirs(base: Path) -> None:
    host.check_memory_place(base, 8 * MIB)
    machine(base, 1, State("v", "a", RUNS, qemu=RUNS))
    host.check_memory_place(base, 4 * MIB)
    with pytest.raises(NoSpace, match=" 4 MiB free"):
        host.check_memory_place(base, 5 * MIB)
    machine(base, 2, State("v", "b", GONE, qemu=RUNS))  # lost its supervisor, and runs on
    with pytest.raises(NoSpace, match=" 0 MiB free"):
        host.check_memory_place(base, 1 * MIB)


def test_memory_that_guests_have_used_is_not_counted_twice(base: Path) -> None:
    memory = machine(base, 1, State("v", "a", RUNS, qemu=RUNS))
    with open(memory, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 2 * MIB)
    host.check_memory_place(base, 6 * MIB)
    with pytest.raises(NoSpace):
        host.check_memory_place(base, 7 * MIB)


def test_what_a_machine_that_died_has_left_is_promised_to_nobody(base: Path) -> None:
    machine(base, 1, State("v", "a", GONE, qemu=GONE))
    host.check_memory_place(base, 8 * MIB)
    machine(base, 2, None)  # just being started
    with pytest.raises(NoSpace):
        host.check_memory_place(base, 5 * MIB)
