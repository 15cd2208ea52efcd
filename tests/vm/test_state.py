"""A full snapshot of a machine of which only the monitor is there: what belongs to its instant."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockvault import Vault
from blockvault.ops import attachments
from blockvault.ops.capture import PAGE
from blockvault.session import Session
from blockvault.vm import state
from blockvault.vm.machine import DEVICES, MEMORY, Machine
from blockvault.vm.rundir import RunDir
from blockvault.vm.running import Running
from tests.vm.pretended import Pretended


class Gate(threading.Event):
    """Where writes wait; ``reached`` once one does."""

    def __init__(self) -> None:
        super().__init__()
        self.set()
        self.reached = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.reached.set()
        return super().wait(timeout)


class Guest:
    """Writes to its memory and its disk as soon as it goes on."""

    def __init__(self, session: Session, memory: Path) -> None:
        self._session = session
        self._memory = memory
        self._status = state.RUNNING
        self._gate = session._open_gate = Gate()
        self.writer = threading.Thread(target=self._write, daemon=True)

    def __call__(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """What its QEMU answers."""
        if command == "migrate":
            with socket.socket(socket.AF_UNIX) as connected:
                connected.connect(arguments["uri"].removeprefix("unix:"))
                connected.sendall(b"devices")
        elif command == "cont":
            with self._memory.open("r+b") as file:
                file.write(b"late")
            self.writer.start()
            assert self._gate.reached.wait(10)
        elif command == "query-migrate":
            return {"status": "completed"}
        stands = {"stop": "paused", "migrate": state.SAVED, "cont": state.RUNNING}
        self._status = stands.get(command, self._status)
        return {"status": self._status}

    def _write(self) -> None:
        self._session.device().write(0, b"late")
        self._gate.reached.set()  # or it was not kept


def test_what_the_guest_writes_when_it_goes_on_is_not_in_the_snapshot(tmp_path: Path) -> None:
    with Vault.create(tmp_path) as vault, vault.session() as session:
        session.create_volume("vda", PAGE).write(0, b"then")
        run = RunDir(tmp_path / "r", vault.options.vault_id, 1, vault.path)
        run.make()
        run.memory.write_bytes(b"then".ljust(4 * PAGE))
        machine = Running(vault, session, run, Machine(memory=16 << 20), "tcg")
        guest = Guest(session, run.memory)
        machine._monitor = Pretended(guest)
        taken = vault.get_snapshot(state.take(machine, "as it runs").id)
        guest.writer.join(10)
        assert vault.device(taken.id.hex()).read(0, 4) == b"then"
        assert attachments.content(vault, taken.attachments, MEMORY)[:4] == b"then"
        assert attachments.content(vault, taken.attachments, DEVICES) == b"devices"
        assert session.device().read(0, 4) == b"late"
        machine.close()
