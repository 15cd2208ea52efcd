"""Run directories: whose they are, and what is believed of what lies there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from blockvault import Vault
from blockvault.cli.main import run as blockvault
from blockvault.cli.vm import common
from blockvault.errors import IOFailed
from blockvault.vm import rundir
from blockvault.vm.rundir import Process, RunDir, State


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory that the program is told to use."""
    folder = tmp_path / "runtime"
    monkeypatch.setenv("BLOCKVAULT_RUNTIME", str(folder))
    return folder


@pytest.fixture
def link(base: Path, tmp_path: Path) -> Path:
    """A symbolic link to it."""
    base.mkdir(mode=0o700)
    made = tmp_path / "link"
    made.symlink_to(base)
    return made


def test_a_runtime_directory_is_made_for_its_owner_alone(base: Path) -> None:
    assert common.runtime() == base
    assert base.stat().st_mode & 0o777 == 0o700
    assert common.runtime() == base


def test_a_runtime_directory_of_somebody_else_is_refused_before_it_is_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.mkdir(mode=0o700)
    run = RunDir(base, bytes(16), 3, tmp_path)
    other = os.getuid() + 1
    monkeypatch.setattr(rundir.os, "getuid", lambda: other)
    with pytest.raises(IOFailed, match="somebody else") as refused:
        common.runtime()
    assert refused.value.reason == "not-permitted"
    with pytest.raises(IOFailed, match="somebody else"):
        run.make()


def test_a_runtime_directory_that_everybody_may_write_to_is_refused(base: Path) -> None:
    base.mkdir()
    base.chmod(0o1777)
    with pytest.raises(IOFailed, match="everybody"):
        common.runtime()


def test_a_link_to_a_runtime_directory_is_followed(
    link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOCKVAULT_RUNTIME", str(link))
    assert common.runtime() == link


def test_a_link_that_somebody_else_made_is_refused(
    link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could lead to another directory of one's own."""
    monkeypatch.setattr(Path, "lstat", lambda path: SimpleNamespace(st_uid=os.getuid() + 1))
    with pytest.raises(IOFailed, match="somebody else"):
        rundir.check_own(link)


# -- which vault's -----------------------------------------------------------------------------


def test_a_copy_of_a_vault_has_machines_of_its_own(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    shutil.copytree(original, copy)
    base, vault_id = tmp_path / "runtime", bytes(16)
    run = RunDir(base, vault_id, 3, original)
    run.make()
    state = State(str(original), "main", Process.of(os.getpid()))
    run.save(state)
    assert RunDir(base, vault_id, 3, copy).load() is None
    assert RunDir(base, bytes(15) + b"x", 3, original).load() is None
    # The vault itself is found by every way that leads to it, also after it was moved.
    (tmp_path / "link").symlink_to(original)
    assert RunDir(base, vault_id, 3, tmp_path / "link").load() == state
    original.rename(tmp_path / "moved")
    assert RunDir(base, vault_id, 3, tmp_path / "moved").load() == state


def test_force_removes_what_a_machine_left_that_died(base: Path, tmp_path: Path) -> None:
    with Vault.create(tmp_path / "v") as vault:
        run = common.run_dir(vault, vault.branch())
    run.make()
    run.memory.touch()
    run.save(State(str(vault.path), "main", Process(0, 0)))
    words = ["-V", str(vault.path), "vm", "stop", "main"]
    assert blockvault(words) == 3
    assert run.memory.exists()
    assert blockvault([*words, "--force"]) == 0
    assert not run.memory.exists()
