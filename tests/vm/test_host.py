"""What a host offers: its processor, and room for memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blockvault import Vault
from blockvault.errors import Conflict, NoSpace
from blockvault.ops import attachments
from blockvault.vm import host, state
from blockvault.vm.machine import CONFIG, DEVICES, HOST, MEMORY, Machine, Made
from blockvault.vm.planning import plan
from blockvault.vm.rundir import Process, RunDir, State

MIB = 1 << 20
CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Intel(R) Xeon(R) CPU @ 2.20GHz
stepping\t: 7
flags\t\t: fpu vme
power management:

processor\t: 1
model\t\t: 86
model name\t: another
"""
RUNS, GONE = Process.of(os.getpid()), Process(0, 0)


# -- the processor -----------------------------------------------------------------------------


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the kernel says of the processors."""
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO)
    monkeypatch.setattr(host, "_CPUINFO", path)
    host.processor.cache_clear()
    yield path
    host.processor.cache_clear()


def test_the_processor_has_name_and_numbers(cpuinfo: Path) -> None:
    assert host.processor() == "Intel(R) Xeon(R) CPU @ 2.20GHz (6-85-7)"
    host.processor.cache_clear()
    cpuinfo.write_text("processor\t: 0\n")
    assert host.processor() == "? (?-?-?)"


@pytest.mark.parametrize(
    ("accelerator", "arguments", "seen"),
    [
        ("tcg", (), False),
        ("kvm", (), True),
        ("kvm", ("-cpu", "Skylake-Server"), False),
        ("kvm", ("--cpu", "qemu64,+avx"), False),
        ("kvm", ("-cpu", "qemu64", "-cpu", "host,-vmx"), True),
        ("tcg", ("-cpu", "host"), False),
    ],
)
def test_a_state_names_the_processor_that_its_guest_saw(
    cpuinfo: Path, accelerator: str, arguments: tuple[str, ...], seen: bool
) -> None:
    machine = Machine(memory=64 * MIB, qemu_args=arguments)
    running: Any = SimpleNamespace(version="7.2.1", accelerator=accelerator, machine=machine)
    made = state._made(running, paused=False)
    assert made == Made("7.2.1", accelerator, False, host.processor() if seen else "")


def test_a_state_of_another_processor_needs_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "version", lambda: "7.2.1")
    monkeypatch.setattr(host, "accelerator", lambda: "kvm")
    monkeypatch.setattr(host, "processor", lambda: "this one (6-85-7)")
    machine = Machine(memory=64 * MIB).encode()
    with Vault.create(tmp_path) as vault:
        for name, processor in [("same", "this one (6-85-7)"), ("old", ""), ("other", "one (6)")]:
            made = Made("7.2.1", "kvm", False, processor)
            files = {CONFIG: machine, MEMORY: b"x", DEVICES: b"x", HOST: made.encode()}
            vault.create_branch(name)
            with vault.session(name) as session, vault.guard():
                session.snapshot(attachments=attachments.keep(vault, files))
        for fits in ("same", "old"):
            assert plan(vault, fits).made is not None
        with pytest.raises(Conflict, match=r"another processor, one \(6\)") as refused:
            plan(vault, "other")
        assert refused.value.reason == "other-qemu"
        assert plan(vault, "other", force=True).made is not None
        assert plan(vault, "other", boot=True).made is None


# -- room for memory ---------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory where 8 MiB are free."""
    monkeypatch.setattr(host, "file_system_type", lambda folder: "tmpfs")
    room = SimpleNamespace(f_bavail=8 * MIB // 4096, f_frsize=4096, f_blocks=1)
    monkeypatch.setattr(os, "statvfs", lambda folder: room)
    return tmp_path


def machine(base: Path, branch: int, known: State | None) -> Path:
    """A machine of 4 MiB whose guest has used nothing yet; its memory."""
    run = RunDir(base, bytes(16), branch, base)
    run.make()
    with open(run.memory, "wb") as memory:
        memory.truncate(4 * MIB)
    if known is not None:
        run.save(known)
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
