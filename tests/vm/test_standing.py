"""A machine that runs, against a monitor that refuses and stalls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from blockvault.errors import ToolFailed
from tests.vm.pretended import Pretended, foreign, refused, running


class Ending:
    """A QEMU that ends a migration while it is told twice to go on."""

    def __init__(self) -> None:
        self.left = 2

    def __call__(self, command: str, arguments: Mapping[str, Any]) -> Any:
        if command == "cont" and self.left:
            self.left -= 1
            raise refused(command, "Migration is not finalized yet")
        return {"status": "running"}


def test_a_guest_goes_on_after_a_snapshot_that_failed_too_early_for_qemu(tmp_path: Path) -> None:
    monitor = Pretended(Ending())
    machine = running(tmp_path, monitor)
    with pytest.raises(KeyError), machine.paused():
        raise KeyError("the first error is the one that is told")
    assert monitor.said == ["query-status", "stop", "cont", "cont", "cont"]
    assert not machine.run.standing.exists()


def test_so_does_one_of_somebody_elses() -> None:
    monitor = Pretended(Ending())
    foreign(monitor).resume()
    assert monitor.said[-3:] == ["cont"] * 3


def test_any_other_refusal_to_go_on_is_told_at_once(tmp_path: Path) -> None:
    def answer(command: str, arguments: Mapping[str, Any]) -> Any:
        raise refused(command, "Resetting the Virtual Machine is required")

    monitor = Pretended(answer)
    with pytest.raises(ToolFailed, match="Resetting"):
        running(tmp_path, monitor).resume()
    assert monitor.said == ["cont"]
