"""Full snapshots of a running machine, measured against QEMU's own, in one run.

    python -m tools.bench.machines [--rounds 10] [--memory 512M] [--fill MIB] [--json FILE]

The guest is that of tools/guest.  Each round takes a full snapshot of an idle machine, rolls it
back, and starts a clone from it; beside it the same guest on a qcow2 image does ``savevm``,
``loadvm``, ``migrate`` to a file, and is started with ``-loadvm``.  A pause is what the guest sees:
for blockvault the time from the order to stop to the answer to go on; for QEMU's commands, which
keep the guest stopped, the time from their beginning to the end.  Going back and starting count
until the guest answers on its console.  ``rollback`` and ``loadvm`` go back inside of a QEMU that
runs; a clone and ``-loadvm`` start one, and no other guest runs meanwhile.  ``loadvm`` is a line
to a monitor that is connected, so ``rollback`` is also measured as what the command sends to the
machine's process: an order.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blockvault.nbd.control import Remote
from blockvault.vm.qmp import Monitor
from tools.bench.commands import flush_disk
from tools.guest.build import Guest, build
from tools.guest.console import Console

COMMAND = [sys.executable, "-m", "blockvault.cli.main"]
CLONES = 10


class Bench:
    """A vault with one machine."""

    def __init__(self, path: Path, guest: Guest, memory: str) -> None:
        self.path = path
        self.guest = guest
        self.memory = memory
        self.runtime = Path(f"/dev/shm/bvbench-{os.getpid()}")
        self("init", path)
        boot = ["--kernel", guest.kernel, "--initrd", guest.initrd, "--append", guest.append]
        self("vm", "create", "main", "--memory", memory, "--disk", f"vda={guest.disk}", *boot)

    def __call__(self, *words: str | Path) -> list[dict[str, Any]]:
        done = subprocess.run(
            [*COMMAND, "-V", self.path, *words],
            env={**os.environ, "BLOCKVAULT_RUNTIME": str(self.runtime)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()] if "--json" in words else []

    def serial(self, branch: str) -> str:
        """Its console; read from its files, since a command would give the guest time."""
        for state in self.runtime.glob("*/state.json"):
            if json.loads(state.read_text())["branch"] == branch:
                return str(state.parent / "serial")
        raise SystemExit(f"{branch} does not run")

    def remote(self) -> Remote:
        """Where the only machine takes its orders."""
        (state,) = self.runtime.glob("*/state.json")
        return Remote(Path(json.loads(state.read_text())["control"]))

    def stored(self) -> int:
        """Bytes that the vault's file takes on the disk."""
        return os.stat(self.path / ".blockvault" / "data.mdb").st_blocks * 512

    def close(self) -> None:
        for state in self.runtime.glob("*/state.json"):
            known = json.loads(state.read_text())
            for process in (known["qemu"], known["supervisor"]):
                if process and process["pid"] and Path(f"/proc/{process['pid']}").exists():
                    os.kill(process["pid"], signal.SIGKILL)
        shutil.rmtree(self.runtime, ignore_errors=True)


def answers(serial: str) -> int:
    """The guest's counter: it is up when it tells."""
    with Console(serial) as console:
        return console.counter()


def settle(console: Console, fill: int) -> None:
    """Wait for a shell, and until the guest holds ``fill`` MiB that nothing can compress; what was
    written until then is on the disk, and burdens nobody.
    """
    console.wait_for_shell()
    if fill:
        console.run(f"dd if=/dev/urandom of=/run/noise bs=1M count={fill}", seconds=600)
    flush_disk()
    time.sleep(5)


def blockvault(bench: Bench, rounds: int, fill: int) -> dict[str, Any]:
    bench("vm", "start", "main")
    with Console(bench.serial("main")) as console:
        settle(console, fill)
    sizes, pauses, taken, restores = [bench.stored()], [], [], []
    orders, used = [], 0
    for number in range(rounds):
        began = time.monotonic()
        made = bench("vm", "snapshot", "main", "-m", str(number), "--json")[0]
        taken.append(time.monotonic() - began)
        pauses.append(made["pause"])
        used = made["used"]
        sizes.append(bench.stored())
        time.sleep(1)
    serial = bench.serial("main")
    for _ in range(rounds):
        began = time.monotonic()
        bench("vm", "rollback", "main", "main~0")
        answers(serial)
        restores.append(time.monotonic() - began)
    remote = bench.remote()
    for _ in range(rounds):
        began = time.monotonic()
        remote.ask("vm-rollback", revision="main~0", force=False)
        answers(serial)
        orders.append(time.monotonic() - began)
    bench("vm", "pause", "main")  # beside ``-loadvm`` nothing else runs either
    before = bench.stored()
    clones = [clone(bench, f"clone{number}") for number in range(CLONES)]
    after = bench.stored()
    bench("vm", "stop", "main", "--force")
    return {
        "used_bytes": used,
        "pause_ms": median(pauses),
        "snapshot_s": statistics.median(taken),
        "first_stored_of_used": (sizes[1] - sizes[0]) / used,
        "later_stored_of_used": (sizes[-1] - sizes[1]) / max(1, len(sizes) - 2) / used,
        "restore_s": statistics.median(restores),
        "restore_order_s": statistics.median(orders),
        "clone_started_s": statistics.median(started for started, _ in clones),
        "clone_s": statistics.median(answered for _, answered in clones),
        "ten_clones_of_one": (after - before) / max(1, sizes[1] - sizes[0]),
    }


def clone(bench: Bench, name: str) -> tuple[float, float]:
    """Seconds until the command that starts a clone ends, and until its guest answers.

    What it touched stays known to the next one, as the file of ``-loadvm`` stays in memory.
    """
    began = time.monotonic()
    bench("vm", "start", "main~0", "--as", name)
    started = time.monotonic() - began
    answers(bench.serial(name))
    answered = time.monotonic() - began
    bench("vm", "pause", name)
    while (Path(bench.serial(name)).parent / "unsound").exists():
        time.sleep(0.1)  # or its memory, which still comes, would be in the way of the next
    bench("vm", "stop", name, "--force")  # as the QEMU with ``-loadvm`` is
    return started, answered


def median(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1000


@contextmanager
def plain_qemu(
    folder: Path, guest: Guest, memory: str, fill: int
) -> Iterator[tuple[Monitor, Path]]:
    """The same guest without blockvault, its disk a qcow2 image."""
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", guest.disk, folder / "disk.qcow2"],
        check=True,
    )
    process = subprocess.Popen(plain_command(folder, guest, memory))
    try:
        with Monitor(folder / "qmp") as monitor:
            with Console(folder / "serial") as console:
                settle(console, fill)
            yield monitor, folder / "serial"
    finally:
        process.kill()
        process.wait()


def plain_command(folder: Path, guest: Guest, memory: str) -> list[str]:
    image, serial = folder / "disk.qcow2", folder / "serial"
    return [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", memory),
        *("-nodefaults", "-display", "none", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
        *("-serial", f"unix:{serial},server=on,wait=off", "-kernel", str(guest.kernel)),
        *("-initrd", str(guest.initrd), "-append", guest.append),
        *("-drive", f"file={image},format=qcow2,if=virtio,discard=unmap"),
    ]


def cold_load(command: list[str], tag: str, folder: Path) -> float:
    """Seconds until a QEMU that is started with ``-loadvm`` answers."""
    for name in ("qmp", "serial"):
        (folder / name).unlink(missing_ok=True)
    began = time.monotonic()
    process = subprocess.Popen([*command, "-loadvm", tag])
    try:
        answers(str(folder / "serial"))
        return time.monotonic() - began
    finally:
        process.kill()
        process.wait()


def qemu(folder: Path, guest: Guest, memory: str, rounds: int, fill: int) -> dict[str, Any]:
    saves, loads, migrations = [], [], []
    with plain_qemu(folder, guest, memory, fill) as (monitor, serial):
        for number in range(rounds):
            saves.append(human(monitor, f"savevm s{number}"))
            time.sleep(0.5)
            began = time.monotonic()
            human(monitor, f"loadvm s{number}")
            answers(str(serial))
            loads.append(time.monotonic() - began)
            human(monitor, f"delvm s{number}")
        for number in range(rounds):
            migrations.append(migrate(monitor, folder / f"state{number % 2}"))
            time.sleep(0.5)
        human(monitor, "savevm cold")
        monitor.execute("quit")
    command = plain_command(folder, guest, memory)
    cold = [cold_load(command, "cold", folder) for _ in range(rounds)]
    return {"savevm_ms": median(saves), "loadvm_s": statistics.median(loads),
            "migrate_ms": median(migrations),
            "start_loadvm_s": statistics.median(cold)}  # fmt: skip


def human(monitor: Monitor, line: str) -> float:
    began = time.monotonic()
    said = monitor.send("human-monitor-command", {"command-line": line}, timeout=120)
    if said:
        raise SystemExit(f"{line}: {said}")
    return time.monotonic() - began


def migrate(monitor: Monitor, path: Path) -> float:
    """Stop, write everything to a file as fast as it goes, go on."""
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


def limits(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Each demand: what was measured, and what it must not exceed."""
    pause = ours["pause_ms"]
    return {
        "pause, ms": (pause, 150.0),
        "pause / savevm": (pause / theirs["savevm_ms"], 0.2),
        "pause / migrate": (pause / theirs["migrate_ms"], 0.2),
        "first snapshot / used memory": (ours["first_stored_of_used"], 0.40),
        "later snapshot / used memory": (ours["later_stored_of_used"], 0.03),
        "restore, s": (ours["restore_s"], 2.0),
        "restore / loadvm": (ours["restore_s"] / theirs["loadvm_s"], 1.0),
        "restore as an order / loadvm": (ours["restore_order_s"] / theirs["loadvm_s"], 1.0),
        "clone, s": (ours["clone_s"], 2.0),
        "clone / start with -loadvm": (ours["clone_s"] / theirs["start_loadvm_s"], 1.0),
        "ten clones / one snapshot": (ours["ten_clones_of_one"], 0.10),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory", default="512M")
    parser.add_argument(
        "--fill", type=int, default=0, help="MiB of the guest's memory to fill with noise"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        guest = build(Path.home() / ".cache" / "blockvault-guest")
        (Path(folder) / "vault").mkdir()
        bench = Bench(Path(folder) / "vault", guest, arguments.memory)
        try:
            ours = blockvault(bench, arguments.rounds, arguments.fill)
        finally:
            bench.close()
        theirs = qemu(Path(folder), guest, arguments.memory, arguments.rounds, arguments.fill)
    found = limits(ours, theirs)
    for name, (value, limit) in found.items():
        print(f"{name:32} {value:10.3f}  at most {limit:7.2f}  {'ok' if value <= limit else 'NO'}")
    print({name: round(value, 3) for name, value in (ours | theirs).items()})
    if arguments.json:
        arguments.json.write_text(json.dumps({"blockvault": ours, "qemu": theirs}, indent=1))
    return int(any(value > limit for value, limit in found.values()))


if __name__ == "__main__":
    sys.exit(main())
