"""The same guest in a QEMU without blockvault, for ``tools.bench.machines``: its disk is a qcow2
image, and QEMU's own commands keep and restore it.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zstandard

from blockvault.errors import ToolFailed
from blockvault.vm import host
from blockvault.vm.qmp import POLL, Monitor
from tools.bench.machines.guest import PAUSE, answers, prepare
from tools.bench.peers.qemu import BACKGROUND
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
        self.backgrounds: list[float] = []
        self.arrivals: list[float] = []
        self.events: dict[str, float] = {}  # when the last one of each name came
        self.missing: dict[str, str] = {}  # what could not be measured, and why
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
        self.monitor = Monitor(self.sockets / "qmp", listener=self._note)
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
        """Once into the image, and into a file once standing still and once in the background."""
        self.saves.append(self._say(f"savevm s{number}"))
        self._say(f"delvm s{number}")
        time.sleep(PAUSE)
        self.migrations.append(self._migrate(self._state(number)))
        time.sleep(PAUSE)
        if (pause := self._in_background()) is not None:
            self.backgrounds.append(pause)
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
        """The last state is kept for those that start from it; of both kinds."""
        with self.running():
            self._say(f"savevm {COLD}")
            self._in_background()
        self.monitor.execute("quit")
        self.monitor.close()
        self.close()
        self.state_bytes = compressed(self._state(0))

    def start(self, number: int) -> None:
        """Until a QEMU that is started with ``-loadvm``, or with what was written in the
        background, answers; and one without anything to do.
        """
        with self._started("-S") as began:
            Monitor(self.sockets / "qmp").close()
            self.bare.append(time.monotonic() - began)
        with self._started("-loadvm", COLD) as began:
            answers(self.serial)
            self.starts.append(time.monotonic() - began)
        if not self.missing:
            self._arrive()

    def _arrive(self) -> None:
        """What it writes goes to a file of its own: the image is that of ``-loadvm``."""
        with self._started("-snapshot", "-incoming", f"exec:cat {self._background}") as began:
            try:
                # what is typed before that is lost when the state of the serial port comes
                with Monitor(self.sockets / "qmp") as monitor:
                    monitor.wait_for(
                        lambda: monitor.status() == "running" or None, "its state", timeout=120
                    )
                answers(self.serial)
                self.arrivals.append(time.monotonic() - began)
            except (OSError, TimeoutError, ToolFailed) as error:
                assert self.process is not None
                ended = self.process.poll()
                why = error if ended is None else f"QEMU ended with status {ended}"
                self.missing["restore"] = f"-incoming does not bring it back: {why}"

    @contextmanager
    def _started(self, *more: str) -> Iterator[float]:
        """A QEMU of its own, ended afterwards; since when it is being started."""
        for name in ("qmp", "serial"):
            (self.sockets / name).unlink(missing_ok=True)
        began = time.monotonic()
        self.process = subprocess.Popen([*self.command, *more])
        try:
            yield began
        finally:
            self.close()

    def figures(self) -> dict[str, Any]:
        background = {
            name: statistics.median(values) * scale
            for name, values, scale in (
                ("background_ms", self.backgrounds, 1000),
                ("incoming_s", self.arrivals, 1),
            )
            if values
        }
        return {
            **background,
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
    def _background(self) -> Path:
        return self.folder / "background"

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
        self._write(path, every=POLL)
        monitor.wait_for(lambda: monitor.status() == "postmigrate" or None, "postmigrate")
        monitor.execute("cont")
        return time.monotonic() - began

    def _in_background(self) -> float | None:
        """Write everything while the guest runs; seconds for which it stood.  None if QEMU, or the
        kernel, does not do that, and ``missing`` then says why.
        """
        if "pause" in self.missing:
            return None
        monitor = self.monitor
        self._background.unlink(missing_ok=True)
        try:
            monitor.send("migrate-set-capabilities", {"capabilities": [BACKGROUND]})
            self.events.clear()
            self._write(self._background, every=0.02)
            monitor.wait_for(lambda: self.events.get("RESUME"), "the guest's going on")
        except ToolFailed as error:
            self.missing = dict.fromkeys(("pause", "restore"), error.message)
            return None
        finally:
            off = {**BACKGROUND, "state": False}
            monitor.send("migrate-set-capabilities", {"capabilities": [off]})
        if monitor.status() != "running":
            raise SystemExit("a background snapshot left the guest standing")
        return self.events["RESUME"] - self.events["STOP"]

    def _write(self, path: Path, *, every: float) -> None:
        """Have QEMU write its state to a file; return when that is done."""

        def done() -> bool | None:
            said = self.monitor.execute("query-migrate")
            if said.get("status") == "failed":
                raise ToolFailed(f"QEMU's migration failed: {said.get('error-desc', 'no word')}")
            return said.get("status") == "completed" or None

        self.monitor.execute("migrate", uri=f"exec:cat >{path}")
        self.monitor.wait_for(done, "the end of its migration", timeout=120, every=every)

    def _note(self, name: str, _: Mapping[str, Any]) -> None:
        self.events[name] = time.monotonic()
