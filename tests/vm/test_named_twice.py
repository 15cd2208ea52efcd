"""A branch whose name a tag has, too: whatever means the branch finds its machine all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.cli.vm import create_cmd
from blockvault.ops.compose import Source, compose
from blockvault.vm import mirror, planning, rundir
from blockvault.vm.foreign import Disk
from blockvault.vm.machine import CONFIG, Machine


@pytest.fixture
def vault(vault: Vault) -> Vault:
    """One with a machine on main, which has one disk, and a tag of that name beside it."""
    files = {CONFIG: Machine(memory=64 << 20, disks=("vda",)).encode()}
    compose(vault, "main", [Source("vda", size=1 << 20)], files)
    vault.create_branch("other")
    vault.tag("main", "other")
    return vault


def test_it_is_listed(vault: Vault, tmp_path: Path) -> None:
    found = rundir.machines(tmp_path / "runtime", vault)
    assert [branch for branch, _, _ in found] == ["main", "other"]


def test_it_starts(vault: Vault) -> None:
    branch = vault.branch("main")
    chosen = planning.plan(vault, branch)
    assert (chosen.position.branch, chosen.machine.disks) == (branch.id, ("vda",))


def test_its_volumes_are_known(vault: Vault) -> None:
    assert create_cmd._volumes(vault, "main") == ["vda"]
    assert create_cmd._volumes(vault, "nowhere") == []
    mirror.make_room(vault, "main", [Disk("vda", "node", 1 << 20), Disk("vdb", "node", 4096)])
    assert create_cmd._volumes(vault, "main") == ["vda", "vdb"]
