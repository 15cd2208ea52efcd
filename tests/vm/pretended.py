"""A QEMU of which there is only what its monitor says, for the order in which things are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from blockvault.errors import ToolFailed
from blockvault.vm.foreign import Foreign
from blockvault.vm.qmp import SECONDS, Monitor
from blockvault.vm.rundir import RunDir
from blockvault.vm.running import Running

Answer = Callable[[str, Mapping[str, Any]], Any]


class Pretended(Monitor):
    """``answer(command, arguments)`` gives each command's result, or raises."""

    def __init__(self, answer: Answer) -> None:
        self.said: list[str] = []
        self._answer = answer

    def send(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = SECONDS
    ) -> Any:
        self.said.append(command)
        return self._answer(command, arguments or {})

    @property
    def version(self) -> str:
        return "7.2.0"


class Served:
    """Disks that are served to nobody."""

    def begin(self) -> None: ...
    def close(self) -> None: ...
    def status(self) -> dict[str, Any]:
        return {}


def refused(command: str, why: str) -> ToolFailed:
    return ToolFailed(f"QEMU refused {command}: {why}", kind="qemu-refused")


def stalled() -> ToolFailed:
    return ToolFailed("QEMU's monitor did not answer in 30 s", kind="qemu-stalled")


def running(folder: Path, monitor: Monitor) -> Running:
    """A machine of blockvault's own with this monitor."""
    run = RunDir(folder, bytes(16), 1, folder)
    run.path.mkdir()
    session: Any = SimpleNamespace(unstored=bytearray(1))
    nothing: Any = None
    made = Running(nothing, session, run, nothing, "tcg")
    made._monitor = monitor
    return made


def foreign(monitor: Monitor) -> Foreign:
    """Somebody else's with this monitor."""
    made = Foreign.__new__(Foreign)
    made.monitor = monitor
    made._stood = []
    return made
