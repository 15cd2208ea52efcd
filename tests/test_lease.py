"""Leases: one process writes a branch, whoever comes second learns who, and death frees it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from blockvault import Vault
from blockvault.errors import Busy, IOFailed, NoSpace
from blockvault.lease import PATIENCE, RECOVERY, Lease
from blockvault.store import journal

HOLD = """
import sys
from blockvault import Vault
vault = Vault.open(sys.argv[1])
session = vault.session("main", holder="the other one")
session.create_volume("v", 4096)
print("held", flush=True)
sys.stdin.read(1)
session.device().write(0, b"theirs")
session.close()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has a session on main until it reads a byte."""
    Vault.create(tmp_path).close()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_the_holder_is_named(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    with Vault.open(tmp_path) as vault:
        seq = vault.branch().seq
        with pytest.raises(Busy, match=rf"by the other one \(process {other.pid}\)") as refused:
            vault.session()
        assert (refused.value.reason, vault.branch().seq) == ("branch-busy", seq)
        vault.create_branch("mine")
        with vault.session("mine") as session:
            session.device().write(0, b"mine")
        other.communicate(b"\n")
        assert vault.open_volume("main").read(6) == b"theirs"
        with vault.session() as session:
            assert session.device().read(0, 6) == b"theirs"


def test_the_lease_of_a_killed_process_is_free(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    other.kill()
    other.wait()
    with Vault.open(tmp_path) as vault, vault.session() as session:
        assert session.device().read(0, 6) == bytes(6)


def test_a_branch_that_is_written_stays(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    with Vault.open(tmp_path) as vault:
        vault.create_branch("mine")
        vault.switch("mine")
        for call in (
            lambda: vault.delete_branch("main"),
            lambda: vault.rollback("main", "mine"),
            lambda: vault.snapshot(branch="main"),
        ):
            with pytest.raises(Busy):
                call()


def test_released_once(tmp_path: Path) -> None:
    lease = Lease(tmp_path, 1, "main", "a test")
    with pytest.raises(Busy, match="a test"):
        Lease(tmp_path, 1, "main", "another")
    Lease(tmp_path, 2, "other", "another").release()
    lease.release()
    lease.release()
    assert lease.path.read_text() == ""
    Lease(tmp_path, 1, "main", "another").release()


def test_a_recovery_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at a vault stores what a killed server promised, while that is restarted."""
    with Vault.create(tmp_path) as vault:
        passing = Lease(vault.path, vault.branch().id, "main", RECOVERY)
        ends = iter([lambda: passing._say(""), passing.release])
        monkeypatch.setattr(time, "sleep", lambda _: next(ends)())
        vault.session().close()
    assert next(ends, None) is None


def test_a_recovery_is_not_waited_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = Lease(tmp_path, 1, "main", RECOVERY)
    with pytest.raises(Busy, match=RECOVERY):
        Lease(tmp_path, 1, "main", RECOVERY)
    clock = iter(range(0, 100, 4))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with pytest.raises(Busy, match=RECOVERY):
        Lease(tmp_path, 1, "main", "a server")
    assert next(clock) > PATIENCE
    passing.release()


def test_a_process_that_outlives_the_holder_keeps_the_branch(tmp_path: Path) -> None:
    lease = Lease(tmp_path, 1, "main", "a test")
    with lease.keep() as fd:
        process = subprocess.Popen(["sleep", "60"], pass_fds=(fd,))
    with process, ExitStack() as ending:
        ending.callback(process.kill)
        lease.release()
        with pytest.raises(Busy, match="vm start main"):
            Lease(tmp_path, 1, "main", "another")
        Lease(tmp_path, 2, "other", "another").release()
        for _ in range(2):
            successor = Lease(tmp_path, 1, "main", "a successor", successor=True)
            assert successor.kept
            with pytest.raises(Busy), successor.keep():
                pass
            successor.release()
    successor = Lease(tmp_path, 1, "main", "a successor", successor=True)
    assert not successor.kept
    successor.release()
    Lease(tmp_path, 1, "main", "another").release()


def test_what_a_keeper_s_holder_promised_is_stored_for_readers(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    """A look at the vault opens the branch for a moment, which takes nothing from the keeper."""
    with Vault.open(tmp_path) as vault:
        path = vault.path
        branch = vault.branch()
    other.communicate(b"\n")
    lease = Lease(path, branch.id, "main", "a test")
    with lease.keep() as fd:
        process = subprocess.Popen(["sleep", "60"], pass_fds=(fd,))
    lease.release()
    with process, ExitStack() as ending:
        ending.callback(process.kill)
        journal.Journal.create(path, branch.id).close()
        Vault.open(tmp_path).close()
        assert not journal.path_of(path, branch.id).exists()


def test_a_full_disk_takes_only_the_name_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        lease = Lease(tmp_path, 1, "main", "a test")
    with pytest.raises(Busy, match="another process"):
        Lease(tmp_path, 1, "main", "second")
    lease.release()
    Lease(tmp_path, 1, "main", "third").release()


def test_a_copy_of_the_descriptor_keeps_no_lease(tmp_path: Path) -> None:
    """Such as a process has that was forked, and has not executed its program yet."""
    lease = Lease(tmp_path, 1, "main", "a test")
    copy = os.dup(lease._fd)
    lease.release()
    Lease(tmp_path, 1, "main", "another").release()
    os.close(copy)


def test_a_forked_child_neither_keeps_nor_ends_a_lease(
    tmp_path: Path, forked: Callable[[Callable[[], None]], None]
) -> None:
    lease = Lease(tmp_path, 1, "main", "a test")
    forked(lease.release)
    with pytest.raises(Busy, match="a test"):
        Lease(tmp_path, 1, "main", "another")
    lease.disown()  # as the end of a killed process does
    Lease(tmp_path, 1, "main", "another").release()


def test_what_cannot_be_told_does_not_count_as_free(tmp_path: Path) -> None:
    """Another user's process may have the branch, whose file this one may not open."""
    (tmp_path / "leases" / "2.keep").mkdir(parents=True)
    with pytest.raises(IOFailed):
        Lease(tmp_path, 2, "main", "us")
    (tmp_path / "leases" / "2.keep").rmdir()
    Lease(tmp_path, 2, "main", "us").release()


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, NoSpace), (errno.EROFS, IOFailed)])
def test_no_lease_where_no_file_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[IOFailed]
) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(kind):
        Lease(tmp_path, 1, "main", "a test")
