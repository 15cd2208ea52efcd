"""The same guest in a QEMU without blockvault, for ``tools.bench.machines``: its disk is a qcow2
image, and QEMU's own commands keep and restore it.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zstandard

from blockvault.vm import host
from blockvault.vm.qmp import Monitor
from tools.bench.machines.guest import PAUSE, answers, prepare
from tools.guest.build import Guest

COLD = "cold"  # the snapshot that a QEMU is started from


def compressed(path: Path) -> int:
    """Bytes that a file takes as one zstd stream of level 3."""
    encoder = zstandard.ZstdCompressor(level=3).compressobj()
    with path.open("rb") as file:
        pieces = iter(lambda: file.read(1 << 20), b"")
        return sum(len(encoder.compress(piece)) for piece in pieces) + len(encoder.flush())


class Theirs:
    """A QEMU whose guest stands still but for its turns.  ``sockets`` is a folder with a short
    name, since those of sockets may not be long.
    """

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder, self.sockets = folder, sockets
        self.serial = str(sockets / "serial")
        self.process: subprocess.Popen[bytes] | None = None
        self.saves: list[float] = []
        self.loads: list[float] = []
        self.migrations: list[float] = []
        self.stops: list[float] = []
        self.answers: list[float] = []
        self.bare: list[float] = []
        self.state_bytes = 0
        self.starts: list[float] = []

    def boot(self, guest: Guest, memory: str, fill: int) -> None:
        """Bring it up, with ``fill`` MiB of noise in its memory, and let it stand still."""
        convert = ("qemu-img", "convert", "-f", "raw", "-O", "qcow2")
        subprocess.run([*convert, guest.disk, self._disk], check=True)
        self.command = self._command(guest, memory)
        self.process = subprocess.Popen(self.command)
        self.monitor = Monitor(self.sockets / "qmp")
        prepare(self.serial, fill)
        self.monitor.execute("stop")

    @contextmanager
    def running(self) -> Iterator[None]:
        """The guest's turn."""
        self.monitor.execute("cont")
        time.sleep(PAUSE)
        yield
        self.monitor.execute("stop")

    def keep(self, number: int) -> None:
        """Once into the image, and once into a file."""
        self.saves.append(self._say(f"savevm s{number}"))
        self._say(f"delvm s{number}")
        time.sleep(PAUSE)
        self.migrations.append(self._migrate(self._state(number)))
        time.sleep(PAUSE)
        began = time.monotonic()
        self.monitor.execute("stop")
        self.monitor.execute("cont")
        self.stops.append(time.monotonic() - began)
        answers(self.serial)
        self.answers.append(time.monotonic() - began)

    def go_back(self, number: int) -> None:
        self._say(f"savevm s{number}")
        time.sleep(PAUSE)
        began = time.monotonic()
        self._say(f"loadvm s{number}")
        answers(self.serial)
        self.loads.append(time.monotonic() - began)
        self._say(f"delvm s{number}")

    def end(self) -> None:
        """The last state is kept for those that start from it."""
        with self.running():
            self._say(f"savevm {COLD}")
        self.monitor.execute("quit")
        self.monitor.close()
        self.close()
        self.state_bytes = compressed(self._state(0))

    def start(self, number: int) -> None:
        """Until a QEMU that is started with ``-loadvm`` answers; and one without anything to do."""
        self._start_bare()
        for name in ("qmp", "serial"):
            (self.sockets / name).unlink(missing_ok=True)
        began = time.monotonic()
        self.process = subprocess.Popen([*self.command, "-loadvm", COLD])
        try:
            answers(self.serial)
            self.starts.append(time.monotonic() - began)
        finally:
            self.close()

    def _start_bare(self) -> None:
        """Until the monitor of a QEMU answers that has nothing to load."""
        for name in ("qmp", "serial"):
            (self.sockets / name).unlink(missing_ok=True)
        began = time.monotonic()
        self.process = subprocess.Popen([*self.command, "-S"])
        try:
            Monitor(self.sockets / "qmp").close()
            self.bare.append(time.monotonic() - began)
        finally:
            self.close()

    def figures(self) -> dict[str, Any]:
        return {
            "savevm_ms": statistics.median(self.saves) * 1000,
            "loadvm_s": statistics.median(self.loads),
            "migrate_ms": statistics.median(self.migrations) * 1000,
            "stop_ms": min(self.stops) * 1000,
            "answer_s": min(self.answers),
            "bare_s": min(self.bare),
            "state_bytes": self.state_bytes,
            "start_loadvm_s": statistics.median(self.starts),
        }

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _state(self, number: int) -> Path:
        return self.folder / f"state{number % 2}"

    @property
    def _disk(self) -> Path:
        return self.folder / "disk.qcow2"

    def _command(self, guest: Guest, memory: str) -> list[str]:
        accelerator = host.accelerator()  # as the machine in the vault
        return [
            *("qemu-system-x86_64", "-M", "q35", "-accel", accelerator, "-m", memory),
            *("-cpu", "host" if accelerator == "kvm" else "max"),
            *("-nodefaults", "-display", "none"),
            *("-qmp", f"unix:{self.sockets}/qmp,server=on,wait=off"),
            *("-serial", f"unix:{self.serial},server=on,wait=off", "-kernel", str(guest.kernel)),
            *("-initrd", str(guest.initrd), "-append", guest.append),
            *("-drive", f"file={self._disk},format=qcow2,if=virtio,discard=unmap"),
        ]

    def _say(self, line: str) -> float:
        began = time.monotonic()
        said = self.monitor.send("human-monitor-command", {"command-line": line}, timeout=120)
        if said:
            raise SystemExit(f"{line}: {said}")
        return time.monotonic() - began

    def _migrate(self, path: Path) -> float:
        """Stop, write everything to a file as fast as it goes, go on."""
        monitor = self.monitor
        monitor.send("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        began = time.monotonic()
        monitor.execute("stop")
        monitor.execute("migrate", uri=f"exec:cat >{path}")
        monitor.wait_for(
            lambda: monitor.execute("query-migrate").get("status") == "completed" or None,
            "the end of its migration", timeout=120,
        )  # fmt: skip
        monitor.wait_for(lambda: monitor.status() == "postmigrate" or None, "postmigrate")
        monitor.execute("cont")
        return time.monotonic() - began
