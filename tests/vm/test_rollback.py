"""What a rollback of a running machine tells of the state that it left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from blockvault import Vault
from blockvault.cli.vm import common, rollback_cmd
from blockvault.session import Session
from blockvault.vm import rewind, supervisor
from blockvault.vm.orders import Orders
from blockvault.vm.planning import How
from blockvault.vm.supervisor import Supervisor

BLOCK = 4096


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.create(tmp_path / "vault") as made:
        with made.session() as session:
            session.create_volume("vda", 16 * BLOCK)
            session.device().write(0, b"then")
        yield made


@pytest.mark.parametrize("inside", [True, False], ids=["the same QEMU", "a new QEMU"])
def test_the_state_that_is_left_has_the_last_writes_of_the_guest(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    target = vault.branch().seq
    monkeypatch.setattr(
        supervisor, "plan", lambda vault, rev, **_: Mock(position=vault.resolve(rev))
    )
    monkeypatch.setattr(rewind, "possible", lambda *_: inside)
    monkeypatch.setattr(rewind, "rewind", Mock())
    monkeypatch.setattr(Supervisor, "_begin", _begins)
    machine = Supervisor(vault, "main", tmp_path / "run", Mock(), Mock(), How())
    machine.run_dir.make()
    session = machine._hold.take()
    machine.running = Mock(session=session)
    session.device().write(0, b"last")  # and no flush
    told = Orders(machine).handlers()["vm-rollback"]({"revision": f"main@{{#{target}}}"})
    machine._hold.give_back()
    assert vault.device(f"main@{{#{told['before']}}}", exact=True).read(0, 4) == b"last"
    assert vault.device("main").read(0, 4) == b"then"


def _begins(self: Supervisor, session: Session, how: How) -> str:
    return "booted"


def test_the_command_shows_what_the_machine_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Vault.create(tmp_path).close()
    answer = {"told": "booted", "before": 4711}
    remote: Any = SimpleNamespace(ask=lambda order, **fields: answer)
    monkeypatch.setattr(common, "machine", lambda vault, branch: remote)
    words = ["main", "main~0", "-V", str(tmp_path)]
    rollback_cmd.run.main([*words, "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == {"branch": "main", **answer}
    rollback_cmd.run.main(words, standalone_mode=False)
    assert "It was at main@{#4711}" in capsys.readouterr().out
