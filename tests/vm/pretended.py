"""A QEMU of which there is only what its monitor says, for the order in which things are asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from blockvault import Vault
from blockvault.errors import ToolFailed
from blockvault.vm.foreign import Foreign
from blockvault.vm.planning import How
from blockvault.vm.qmp import SECONDS, Monitor
from blockvault.vm.rundir import RunDir
from blockvault.vm.running import Running
from blockvault.vm.supervisor import Supervisor

Answer = Callable[[str, Mapping[str, Any]], Any]


class Process:
    """What ends only when it is told to."""

    def __init__(self) -> None:
        self._gone = threading.Event()

    def wait(self, seconds: float) -> bool:
        return self._gone.wait(seconds)

    @property
    def ended(self) -> bool:
        return self._gone.is_set()

    def kill(self) -> None:
        self._gone.set()

    def reason(self, *, powered_off: bool = False) -> str:
        return "it is gone"

    def close(self) -> None: ...


class Pretended(Monitor):
    """``answer(command, arguments)`` gives each command's result, or raises."""

    def __init__(self, answer: Answer) -> None:
        self.said: list[str] = []
        self.process = Process()
        self._answer = answer

    def send(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = SECONDS
    ) -> Any:
        self.said.append(command)
        if command == "quit":
            self.process.kill()
            return {}
        return self._answer(command, arguments or {})

    def close(self) -> None: ...

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


def running(folder: Path, monitor: Pretended) -> Running:
    """A machine of blockvault's own with this monitor."""
    run = RunDir(folder, bytes(16), 1, folder)
    run.path.mkdir()
    session: Any = SimpleNamespace(unstored=bytearray(1), flush=lambda: None, close=lambda: None)
    nothing: Any = None
    made = Running(nothing, session, run, nothing, "tcg")
    made._monitor = monitor
    process: Any = monitor.process
    made._qemu = process
    return made


def supervisor(vault: Vault, folder: Path, monitor: Pretended) -> Supervisor:
    """Who runs it as the machine of ``main``."""
    made = Supervisor(
        vault, "main", folder / "run", lambda *_: Served(), lambda _: folder / "control", How()
    )
    made.run_dir.make()
    made.running = running(folder, monitor)
    made._hold.session = made.running.session
    made.served = Served()
    return made


def foreign(monitor: Pretended) -> Foreign:
    """Somebody else's with this monitor."""
    made = Foreign.__new__(Foreign)
    made.monitor = monitor
    made._stood = []
    return made
