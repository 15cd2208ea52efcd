"""The list of machines, when one of them does not answer."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.cli.vm import common, list_cmd
from blockvault.nbd import control
from blockvault.vm.rundir import Process, State

SECONDS = 10.0


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """The control socket of a process that takes no orders, and goes away some time."""
    path = tmp_path / f"{os.getpid()}-1.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        going = threading.Timer(SECONDS, listener.close)
        going.start()
        yield path
        going.cancel()


def test_a_supervisor_that_does_not_answer_is_waited_for_no_longer_than_it_takes_others(
    tmp_path: Path, silent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOCKVAULT_RUNTIME", str(tmp_path / "runtime"))
    monkeypatch.setattr(control, "STATUS_SECONDS", 0.05)
    with Vault.create(tmp_path) as vault:
        run = common.run_dir(vault, vault.branch("main"))
        run.make()
        own = Process.of(os.getpid())
        state = State(str(vault.path), "main", own, control=str(silent))
        run.save(state)
        row = list_cmd._row(vault, "main", state, "running")
    assert row["status"] == "running"
    assert row["pid"] == own.pid
    assert "does not answer" in row["note"]
