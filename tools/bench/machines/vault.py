"""A machine in a vault, for ``tools.bench.machines``: snapshot, rollback and clones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blockvault
from blockvault.nbd.control import Remote
from blockvault.store import tables
from tools.bench.machines.guest import PAUSE, answers, prepare
from tools.guest.build import Guest

COMMAND = [sys.executable, "-m", "blockvault.cli.main"]
CLONES = 10


class Ours:
    """A vault with one machine, which stands still but for its turns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runtime = Path(f"/dev/shm/bvbench-{os.getpid()}")
        self.pauses: list[float] = []
        self.holds: list[float] = []
        self.taken: list[float] = []
        self.sizes: list[int] = []
        self.restores: list[float] = []
        self.orders: list[float] = []
        self.clones: list[tuple[float, float]] = []
        self.used = self.cloned = 0

    def boot(self, guest: Guest, memory: str, fill: int) -> None:
        """Bring it up, with ``fill`` MiB of noise in its memory, and let it stand still."""
        self("init", self.path)
        boot = ("--kernel", guest.kernel, "--initrd", guest.initrd, "--append", guest.append)
        self("vm", "create", "main", "--memory", memory, "--disk", f"vda={guest.disk}", *boot)
        self("vm", "start", "main")
        self.serial = self.serial_of("main")
        prepare(self.serial, fill)
        self.stand_still()
        self.sizes.append(self.stored())

    def __call__(self, *words: str | Path) -> list[dict[str, Any]]:
        done = subprocess.run(
            [*COMMAND, "-V", self.path, *words],
            env={**os.environ, "BLOCKVAULT_RUNTIME": str(self.runtime)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()] if "--json" in words else []

    @contextmanager
    def running(self) -> Iterator[None]:
        """The machine's turn."""
        self.remote().ask("vm-resume")
        time.sleep(PAUSE)
        yield
        self.stand_still()

    def stand_still(self) -> None:
        """Pause it, and wait for memory that still comes: it would be in the way of the next."""
        self.remote().ask("vm-pause")
        self._wait_for_memory(self.serial)

    def snapshot(self, number: int) -> None:
        began = time.monotonic()
        made = self("vm", "snapshot", "main", "-m", str(number), "--json")[0]
        self.taken.append(time.monotonic() - began)
        self.pauses.append(made["pause"])
        self.holds.append(made["held"])
        self.used = made["used"]
        self.sizes.append(self.stored())

    def go_back(self, number: int) -> None:
        """By a command, and by what the command sends to the machine's process."""
        began = time.monotonic()
        self("vm", "rollback", "main", "main~0")
        answers(self.serial)
        self.restores.append(time.monotonic() - began)
        self._wait_for_memory(self.serial)
        remote = self.remote()
        began = time.monotonic()
        remote.ask("vm-rollback", revision="main~0", force=False)
        answers(self.serial)
        self.orders.append(time.monotonic() - began)

    def clone(self, number: int) -> None:
        """Seconds until the command that starts a clone ends, and until its guest answers.

        What it touched stays known to the next one, as the file of ``-loadvm`` stays in memory.
        """
        name, before = f"clone{number}", self.stored()
        began = time.monotonic()
        self("vm", "start", "main~0", "--as", name)
        started = time.monotonic() - began
        serial = self.serial_of(name)
        answers(serial)
        self.clones.append((started, time.monotonic() - began))
        self("vm", "pause", name)
        self._wait_for_memory(serial)
        self("vm", "stop", name, "--force")  # as the QEMU with ``-loadvm`` is
        self.cloned += self.stored() - before

    def figures(self) -> dict[str, Any]:
        used, sizes = self.used, self.sizes
        first = sizes[1] - sizes[0]
        return {
            "used_bytes": used,
            "pause_ms": statistics.median(self.pauses) * 1000,
            "held_ms": statistics.median(self.holds) * 1000,
            "snapshot_s": statistics.median(self.taken),
            "first_stored_of_used": first / used,
            "later_stored_of_used": (sizes[-1] - sizes[1]) / max(1, len(sizes) - 2) / used,
            "restore_s": statistics.median(self.restores),
            "restore_order_s": statistics.median(self.orders),
            "clone_started_s": statistics.median(started for started, _ in self.clones),
            "clone_s": statistics.median(answered for _, answered in self.clones),
            "ten_clones_of_one": self.cloned / max(1, first),
        }

    def serial_of(self, branch: str) -> str:
        """Its console; read from its files, since a command would give the guest time."""
        for state in self.runtime.glob("*/state.json"):
            if json.loads(state.read_text())["branch"] == branch:
                return str(state.parent / "serial")
        raise SystemExit(f"{branch} does not run")

    def remote(self) -> Remote:
        """Where the machine takes its orders."""
        state = Path(self.serial).parent / "state.json"
        return Remote(Path(json.loads(state.read_text())["control"]))

    def stored(self) -> int:
        """Bytes of what is kept; not of the file, which has pages that wait to be used again."""
        with blockvault.open(self.path) as vault, vault.read() as reader:
            sizes = reader.table_bytes()
        return sum(sizes[name] for name in (tables.FRAMES, tables.INDEX, tables.LOG))

    def _wait_for_memory(self, serial: str) -> None:
        while (Path(serial).parent / "unsound").exists():
            time.sleep(0.1)

    def close(self) -> None:
        for state in self.runtime.glob("*/state.json"):
            known = json.loads(state.read_text())
            for process in (known["qemu"], known["supervisor"]):
                if process and process["pid"] and Path(f"/proc/{process['pid']}").exists():
                    os.kill(process["pid"], signal.SIGKILL)
        shutil.rmtree(self.runtime, ignore_errors=True)
