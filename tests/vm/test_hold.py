"""What a supervisor finds of the one before it, with a process that only sleeps for QEMU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from blockvault import Vault
from blockvault.errors import Busy
from blockvault.session import Session
from blockvault.vm import hold as holding
from blockvault.vm.hold import Hold
from blockvault.vm.process import Qemu
from blockvault.vm.rundir import Process, RunDir, State

DEAD = Process(0, 0)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.create(tmp_path / "vault") as made:
        yield made


@pytest.fixture
def run(vault: Vault, tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run", vault.options.vault_id, vault.branch().id, vault.path)
    made.make()
    return made


Start = Callable[[Session], Qemu]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start something that keeps the branch, and that ends with the test."""
    with ExitStack() as closing:

        def started(session: Session) -> Qemu:
            with session.keep() as keep:
                qemu = Qemu.start(["sleep", "60"], tmp_path / "said", keep)
            closing.callback(qemu.kill)
            return qemu

        yield started


def hold(vault: Vault, run: RunDir) -> Hold:
    return Hold(vault, vault.branch(), run)


def test_a_qemu_whose_branch_was_kept_is_found(vault: Vault, run: RunDir, start: Start) -> None:
    first = hold(vault, run)
    session = first.take_over()
    qemu = start(session)
    session.close()
    run.save(State(str(vault.path), "main", DEAD, qemu=qemu.process))
    with pytest.raises(Busy, match="kept"):
        vault.rollback("main", "main")
    second = hold(vault, run)
    with second.take_over() as session:
        found = second.orphan(session)
    assert found is not None
    assert found.process == qemu.process
    assert not qemu.ended


def test_a_qemu_that_kept_nothing_is_ended(vault: Vault, run: RunDir, start: Start) -> None:
    """Somebody else may have moved the branch under it."""
    vault.create_branch("other")
    with vault.session("other") as session:
        qemu = start(session)
    run.save(State(str(vault.path), "main", DEAD, qemu=qemu.process))
    with (found := hold(vault, run)).take_over() as session:
        assert found.orphan(session) is None
    assert qemu.ended


@pytest.mark.parametrize("beginning", [True, False])
def test_a_qemu_that_cannot_go_on_is_ended(
    vault: Vault, run: RunDir, start: Start, beginning: bool
) -> None:
    """One that was waiting for its state, or whose memory is not whole."""
    with (held := hold(vault, run)).take_over() as session:
        qemu = start(session)
        run.save(State(str(vault.path), "main", DEAD, qemu=qemu.process, beginning=beginning))
        if not beginning:
            run.unsound.touch()
    with (held := hold(vault, run)).take_over() as session:
        assert held.orphan(session) is None
    assert qemu.ended


def test_a_qemu_of_another_run_directory_keeps_everybody_away(
    vault: Vault, run: RunDir, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "PATIENCE", 0.0)
    with (held := hold(vault, run)).take_over() as session:
        qemu = start(session)
    held = hold(vault, run)
    with held.take_over() as session, pytest.raises(Busy, match="BLOCKVAULT_RUNTIME"):
        held.orphan(session)
    assert not qemu.ended


def test_a_qemu_that_is_dying_is_waited_for(
    vault: Vault, run: RunDir, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first thread is gone, and so it seems dead, while others have its files open."""
    with (held := hold(vault, run)).take_over() as session:
        qemu = start(session)
    run.save(State(str(vault.path), "main", DEAD, qemu=DEAD))
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: qemu.kill())
    monkeypatch.setattr(holding, "time", clock)
    with (held := hold(vault, run)).take_over() as session:
        assert held.orphan(session) is None
    assert qemu.ended


def test_a_machine_that_runs_is_not_taken_over(vault: Vault, run: RunDir) -> None:
    run.save(State(str(vault.path), "main", Process.of(os.getpid())))
    with pytest.raises(Busy) as refused:
        hold(vault, run).take_over()
    assert refused.value.reason == "machine-running"


def test_a_machine_that_somebody_else_started_meanwhile_is_left(
    vault: Vault, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at it and the lease it was started, failed, and gave the branch back."""
    held = hold(vault, run)
    take = held.take

    def late() -> Session:
        run.save(State(str(vault.path), "main", DEAD, ended="it did not start"))
        return take()

    monkeypatch.setattr(held, "take", late)
    with pytest.raises(Busy, match="at this moment"):
        held.take_over()
    vault.session("main").close()
