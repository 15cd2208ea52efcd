"""Configurations: what is refused, what is read back, what QEMU is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockvault.errors import BadRequest, Damaged, Unsupported
from blockvault.vm import command, host, rundir
from blockvault.vm.machine import Machine, Made, mac_for
from blockvault.vm.rundir import Process, RunDir, State

MIB = 1 << 20


@pytest.mark.parametrize(
    "fields",
    [
        {"memory": 8 * MIB},
        {"memory": 64 * MIB + 1},
        {"memory": 64 * MIB, "cpus": 0},
        {"memory": 64 * MIB, "net": "bridge"},
        {"memory": 64 * MIB, "firmware": "coreboot"},
        {"memory": 64 * MIB, "mac": "52:54:00"},
        {"memory": 64 * MIB, "append": "quiet"},
        {"memory": 64 * MIB, "disks": ("vda", "vda")},
    ],
)
def test_what_cannot_be_a_machine(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        Machine(**fields)


def test_a_configuration_comes_back_and_differs_by_the_line() -> None:
    machine = Machine(memory=512 * MIB, cpus=2, disks=("vda", "vdb"), qemu_args=("-vga", "std"))
    text = machine.encode()
    assert Machine.decode(text) == machine
    other = Machine(memory=512 * MIB, cpus=3, disks=("vda", "vdb"), qemu_args=("-vga", "std"))
    different = set(text.splitlines()) ^ set(other.encode().splitlines())
    assert different == {b' "cpus": 2,', b' "cpus": 3,'}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", Damaged),
        (b"[]", Damaged),
        (b"{}", Damaged),
        (b'{"version": 2}', Unsupported),
        (b'{"version": 1, "memory": 1}', Damaged),
        (b'{"version": 1, "memory": 67108864, "disks": [], "qemu_args": [], "x": 1}', Damaged),
    ],
)
def test_what_is_no_configuration(text: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        Machine.decode(text)


def test_what_made_a_state_comes_back() -> None:
    made = Made(qemu="7.2.1", accelerator="tcg", paused=True)
    assert Made.decode(made.encode()) == made
    with pytest.raises(Damaged):
        Made.decode(b"{}")
    # Only what was saved under KVM names a processor, and what does not can be read.
    assert b"processor" not in made.encode()
    under_kvm = Made(qemu="7.2.1", accelerator="kvm", paused=True, processor="One (6-1-1)")
    assert Made.decode(under_kvm.encode()) == under_kvm
    old = b'{"qemu": "7.2.1", "accelerator": "kvm", "paused": false}'
    assert Made.decode(old) == Made("7.2.1", "kvm", False, "")


def test_mac_addresses_are_stable_and_local() -> None:
    assert mac_for("a") == mac_for("a") != mac_for("b")
    assert mac_for("a").startswith("52:54:00:")
    assert host.series("7.2.22") == "7.2"


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "qemu", lambda: "qemu")
    run = RunDir(tmp_path / "a,b", bytes(16), 3, tmp_path)
    machine = Machine(
        memory=512 * MIB, cpus=2, disks=("vda",), kernel=True, append="quiet", net="user",
        mac=mac_for("x"), type="pc-q35-7.2", qemu_args=("-s",),
    )  # fmt: skip
    words = command.command(machine, run, "web,1", "tcg", incoming=True)
    line = " ".join(words)
    assert words[0] == "qemu"
    assert words[1:3] == ["-name", "guest=web,,1,debug-threads=on"], "or 'a=b' would be an option"
    assert "memory-backend-file,id=ram,size=512M" in line
    assert "a,,b" in line, "a comma in a path is doubled"
    assert "share=on" in line
    assert '"export": "web,1/vda"' in line
    assert "vmgenid,guid=auto" in line
    assert words[-4:] == ["-incoming", "defer", "-S", "-s"], "what the user adds comes last"


@pytest.mark.parametrize(
    ("disks", "serials"),
    [
        (
            ("debian-12-genericcloud-amd64", "vda", "debian-12-genericcloud-arm64"),
            ["debian-12-genericclo", "vda", "debian-12-genericc-2"],
        ),
        (("данные-сервера-a", "данные-сервера-b"), ["данные-сер", "данные-се-1"]),
        (
            ("debian-12-generic-aa", "debian-12-generic-aab", "debian-12-generic--1"),
            ["debian-12-generic-aa", "debian-12-generic--1", "debian-12-generic--2"],
        ),
    ],
)
def test_no_two_disks_have_one_serial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disks: tuple[str, ...], serials: list[str]
) -> None:
    """Of which a guest sees twenty bytes."""
    monkeypatch.setattr(host, "qemu", lambda: "qemu")
    machine = Machine(memory=64 * MIB, disks=disks)
    words = command.command(machine, RunDir(tmp_path, bytes(16), 3, tmp_path), "web", "tcg")
    devices = [json.loads(word) for word in words if '"serial"' in word]
    assert [device["serial"] for device in devices] == serials
    assert all(len(serial.encode()) <= 20 for serial in serials)


def test_a_process_is_not_mistaken_for_a_later_one(tmp_path: Path) -> None:
    import os

    own = Process.of(os.getpid())
    assert own.alive
    assert not Process(own.pid, own.started - 1).alive
    assert not Process(0, 0).alive
    run = RunDir(tmp_path, bytes(16), 3, tmp_path)
    assert rundir.status(run.load()) == "stopped"
    run.make()
    for state, expected in [
        (State("v", "b", own), "running"),
        (State("v", "b", Process(0, 0), qemu=own), "orphaned"),
        (State("v", "b", Process(0, 0), qemu=Process(1, 1)), "died"),
        (State("v", "b", Process(0, 0), ended="it was over"), "stopped"),
    ]:
        run.save(state)
        assert run.load() == state
        assert rundir.status(run.load()) == expected


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="too long"):
        RunDir(tmp_path / ("x" * 120), bytes(16), 1, tmp_path)
