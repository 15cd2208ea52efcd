"""The branch of a new machine: there if it runs, gone if it did not start."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from blockvault import Vault
from blockvault.cli.vm import clone_cmd, common, start_cmd
from blockvault.errors import BadRequest, IOFailed, NotFound
from blockvault.vm import planning
from blockvault.vm.rundir import Process, State

Start = Callable[[Vault, str], None]
"""What happens when a machine is to be started on a branch."""


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    """One that the commands find open; in it, any revision has a machine."""
    monkeypatch.setenv("BLOCKVAULT_RUNTIME", str(tmp_path / "runtime"))
    machine = SimpleNamespace(machine=SimpleNamespace(mac=""))
    monkeypatch.setattr(planning, "plan", lambda *_, **__: machine)
    with Vault.create(tmp_path) as made:
        tip = made.snapshot("first").id.hex()
        remote = SimpleNamespace(ask=lambda *_, **__: {"id": tip})
        monkeypatch.setattr(common, "machine", lambda *_: remote)
        for command in (start_cmd, clone_cmd):
            monkeypatch.setattr(command, "open_vault", lambda: _Left(made))
        yield made


class _Left:
    """An open vault that stays so after the command."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault

    def __enter__(self) -> Vault:
        return self.vault

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def run(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run a command whose machine starts as told; the branches that are there afterwards."""

    def call(start: Start, command: Any, *words: str) -> list[str]:
        class Fork:
            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def run(self, vault: Vault, branch: str, how: Any) -> dict[str, Any]:
                start(vault, branch)
                return {"branch": branch, "told": "booted", "pid": 1}

        monkeypatch.setattr(start_cmd, "Fork", Fork)
        monkeypatch.setattr(clone_cmd, "Fork", Fork)
        with contextlib.suppress(IOFailed):
            command.run.main([*words, "--json"], standalone_mode=False)
        return [branch.name for branch in vault.branches()]

    return call


def starts(vault: Vault, branch: str) -> None:
    vault.branch(branch)


def fails(vault: Vault, branch: str) -> None:
    common.run_dir(vault, vault.branch(branch)).make()
    raise IOFailed("it did not start")


def fails_and_deletes(vault: Vault, branch: str) -> None:
    vault.delete_branch(branch)
    raise IOFailed("it did not start")


def leaves_a_guest(vault: Vault, branch: str) -> None:
    run = common.run_dir(vault, vault.branch(branch))
    run.make()
    run.save(State("v", branch, Process(0, 0), qemu=Process.of(os.getpid())))
    raise IOFailed("it did not start")


NEW = [
    (start_cmd, "main~0", "--as", "new"),
    (start_cmd, "main", "--as", "new"),
    (clone_cmd, "main", "new"),
]


@pytest.mark.parametrize("words", NEW)
def test_a_machine_that_starts_has_its_branch(run: Any, words: Any) -> None:
    assert run(starts, *words) == ["main", "new"]


@pytest.mark.parametrize("start", [fails, fails_and_deletes])
@pytest.mark.parametrize("words", [*NEW, (start_cmd, "main", "--throw-away")])
def test_a_machine_that_does_not_start_leaves_no_branch(
    run: Any, words: Any, start: Start, tmp_path: Path
) -> None:
    assert run(start, *words) == ["main"]
    assert list((tmp_path / "runtime").glob("*-*")) == []


@pytest.mark.parametrize("words", NEW)
def test_a_guest_without_its_process_keeps_its_branch(run: Any, words: Any) -> None:
    assert run(leaves_a_guest, *words) == ["main", "new"]


@pytest.mark.parametrize("revision", ["main", "heads/main", "HEAD", "@"])
def test_a_branch_that_was_there_stays(run: Any, vault: Vault, revision: str) -> None:
    assert run(fails, start_cmd, revision) == ["main"]
    assert run(starts, start_cmd, revision) == ["main"]


def test_a_clone_that_may_not_be_called_so_is_refused_before_anything_is_recorded(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "machine", lambda *_: pytest.fail("its source was asked"))
    with pytest.raises(BadRequest, match="'tags/' before a name"):
        run(starts, clone_cmd, "main", "tags/new")


def test_a_clone_that_cannot_be_planned_leaves_no_branch(
    run: Any, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*_: object, **__: object) -> None:
        raise NotFound("no machine")

    monkeypatch.setattr(planning, "plan", plan)
    with pytest.raises(NotFound):
        run(starts, clone_cmd, "main", "new")
    assert [branch.name for branch in vault.branches()] == ["main"]
