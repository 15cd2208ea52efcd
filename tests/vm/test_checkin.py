"""A machine whose files went through a directory: what it starts from afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.ops import attachments, checkin, checkout
from blockvault.vm.machine import CONFIG, DEVICES, HOST, INITRD, KERNEL, LAYOUT, MEMORY, Machine
from blockvault.vm.planning import plan

MIB = 1 << 20


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """A machine that is booted with a kernel, recorded as it ran, and checked out."""
    machine = Machine(memory=64 * MIB, disks=("vda",), kernel=True, initrd=True)
    files = {CONFIG: machine.encode(), KERNEL: b"old kernel", INITRD: b"old initrd"}
    files |= {MEMORY: b"pages", DEVICES: b"registers", HOST: b"{}", LAYOUT: b"{}"}
    with Vault.create(tmp_path / "vault") as made:
        with made.session() as session, made.guard():
            session.create_volume("vda", MIB).write(0, b"as it ran")
            session.snapshot("as it ran", attachments=attachments.keep(made, files))
        checkout.execute(made, checkout.plan(made, "main", tmp_path / "files"))
        yield made


def checked_in(vault: Vault, tmp_path: Path, branch: str | None, **changed: bytes) -> str:
    """Take in the files with these contents; return the branch that has them."""
    for name, content in changed.items():
        path = tmp_path / "files" / name.replace("_", ".")
        path.write_bytes(content.ljust(path.stat().st_size if name == "vda_raw" else 0, b"\0"))
    checkin.snapshot_from(vault, tmp_path / "files", branch=branch)
    return branch or "main"


def test_what_is_left_out_beside_other_disks() -> None:
    assert {MEMORY, DEVICES, HOST, LAYOUT} == attachments.RUNNING_STATE


@pytest.mark.parametrize("branch", [None, "beside"])
@pytest.mark.parametrize("changed", ["machine_json", "kernel", None])
def test_configuration_and_boot_files_stay_together(
    vault: Vault, tmp_path: Path, branch: str | None, changed: str | None
) -> None:
    config = Machine(memory=96 * MIB, disks=("vda",), kernel=True, initrd=True).encode()
    new = {"machine_json": config, "kernel": b"new kernel"}
    files = {changed: new[changed]} if changed else {}
    found = plan(vault, checked_in(vault, tmp_path, branch, vda_raw=b"changed", **files))
    assert found.memory is None
    assert found.machine.memory == (96 if changed == "machine_json" else 64) * MIB
    kernel = b"new kernel" if changed == "kernel" else b"old kernel"
    assert attachments.content(vault, found.files, KERNEL) == kernel
    assert attachments.content(vault, found.files, INITRD) == b"old initrd"
    snapshot = vault.resolve(branch or "main")
    assert not {each.name for each in snapshot.attachments} & attachments.RUNNING_STATE
    assert attachments.find(snapshot.attachments, CONFIG), "though all before it be pruned"
