"""QEMUs that somebody else started: recorded while they run, and given their state back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blockvault.vm.qmp import Monitor
from tools.guest.console import Console

COMMAND = [sys.executable, "-m", "blockvault.cli.main"]

Start = Callable[..., "Strange"]


class Strange:
    """A QEMU started by hand: nothing of it is blockvault's."""

    def __init__(self, folder: Path, guest: Any, disk: str, *extra: str) -> None:
        folder.mkdir()
        self.qmp, self.serial = folder / "qmp", folder / "serial"
        words = [
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "128"),
            *("-nodefaults", "-display", "none", "-serial"),
            *(f"unix:{self.serial},server=on,wait=off", "-blockdev", disk),
            *("-device", "virtio-blk-pci,drive=system,id=system"),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off", "-kernel", str(guest.kernel)),
            *("-initrd", str(guest.initrd), "-append", guest.append, *extra),
        ]
        self.process = subprocess.Popen(words)
        self._consoles: list[Console] = []

    def console(self) -> Console:
        self._consoles.append(Console(self.serial))
        return self._consoles[-1]

    def ask(self, command: str) -> Any:
        with Monitor(self.qmp) as monitor:
            return monitor.execute(command)

    def close(self) -> None:
        for console in self._consoles:
            console.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def strange(guest: Any, lab: Any) -> Iterator[Start]:
    made: list[Strange] = []

    def start(disk: str, *extra: str) -> Strange:
        made.append(Strange(lab.path / f"strange{len(made)}", guest, disk, *extra))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def serve(lab: Any) -> Iterator[Callable[[str], Path]]:
    """Serve a branch on a unix socket."""
    servers: list[subprocess.Popen[bytes]] = []

    def start(branch: str) -> Path:
        path: Path = lab.path / f"nbd{len(servers)}"
        words = ["-V", lab.path, "serve", "--export", branch, "--socket", path]
        servers.append(subprocess.Popen([*COMMAND, *map(str, words)], cwd=lab.path))
        lab.wait_until(path.exists)
        return path

    yield start
    for server in servers:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def qcow2(lab: Any) -> tuple[Path, str]:
    image = lab.path / "own.qcow2"
    words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", lab.guest.disk, image]
    subprocess.run(words, check=True)
    return image, f"driver=qcow2,node-name=system,file.driver=file,file.filename={image}"


def nbd(socket: Path, branch: str) -> str:
    server = f"server.type=unix,server.path={socket}"
    return f"driver=nbd,node-name=system,{server},export={branch}/system,discard=unmap"


def test_own_images_are_copied_and_the_state_goes_elsewhere(
    lab: Any, strange: Start, serve: Callable[[str], Path]
) -> None:
    _, disk = qcow2(lab)
    machine = strange(disk)
    console = machine.console()
    console.wait_for_shell()
    console.run("echo then >/disk/f; sync; echo then >/run/f")
    counted = console.counter()
    made = lab.run("vm", "attach", "--qmp", machine.qmp, "web", "-m", "as it runs", "--json")
    names = [each["name"] for each in made["attachments"]]
    assert names == ["device-state", "memory", "memory.json", "qemu-command.json", "state.json"]
    assert 0 < made["pause"] < 5
    assert machine.ask("query-status")["status"] == "running"
    assert [job["id"] for job in machine.ask("query-jobs")] == []
    # It works with its own image as before, and a second time costs little.
    console.run("echo later >/disk/f; sync; echo later >/run/f")
    before = os.stat(lab.path / ".blockvault" / "data.mdb").st_blocks
    again = lab.run("vm", "attach", "--qmp", machine.qmp, "web", "--json")
    assert again["used"] > 20 << 20
    assert (os.stat(lab.path / ".blockvault" / "data.mdb").st_blocks - before) * 512 < 24 << 20
    lab.check_disk_of(made["id"], "system")
    lab.check_disk_of(again["id"], "system")
    machine.close()

    assert lab.run("vm", "start", made["id"], "--as", "x", "--json", code=4)["error"]["kind"] == (
        "foreign-state"
    )
    lab.run("branch", "back", made["id"])
    other = strange(nbd(serve("back"), "back"), "-incoming", "defer")
    lab.wait_until(other.qmp.exists)
    told = lab.run("vm", "load", "--qmp", other.qmp, made["id"], "--json")
    assert told["status"] == "running"
    restored = other.console()
    assert restored.run("cat /disk/f /run/f") == "then\nthen"
    at = restored.counter()
    assert counted <= at < counted + 400
    lab.wait_until(lambda: restored.counter() > at)
    error = lab.run("vm", "load", "--qmp", other.qmp, made["id"], "--json", code=4)
    assert error["error"]["kind"] == "not-waiting"


def test_disks_on_the_vaults_server_are_recorded_there(
    lab: Any, strange: Start, serve: Callable[[str], Path]
) -> None:
    lab.run("import", lab.guest.disk, "--volume", "system", "-b", "web")
    machine = strange(nbd(serve("web"), "web"))
    console = machine.console()
    console.wait_for_shell()
    console.run("echo then >/disk/f; sync; echo then >/run/f")
    made = lab.run("vm", "attach", "--qmp", machine.qmp, "web", "--json")
    assert made["volumes"][0]["name"] == "system"
    assert len(made["attachments"]) == 5
    console.run("echo later >/disk/f; sync; echo later >/run/f")
    plain = lab.run("vm", "attach", "--qmp", machine.qmp, "web", "--disk-only", "--json")
    assert plain["attachments"] == []
    assert plain["used"] is None
    assert machine.ask("query-status")["status"] == "running"
    machine.ask("stop")
    lab.run("vm", "attach", "--qmp", machine.qmp, "web")
    log = lab.run("log", "web", "--oneline")
    error = lab.run("vm", "attach", "--qmp", machine.qmp, "web", "--json", code=4)
    assert error["error"]["kind"] == "saved-once"
    assert lab.run("log", "web", "--oneline") == log
    machine.ask("cont")
    lab.run("vm", "attach", "--qmp", machine.qmp, "web")
    machine.close()
    lab.run("branch", "back", made["id"])
    other = strange(nbd(serve("back"), "back"), "-incoming", "defer")
    lab.wait_until(other.qmp.exists)
    lab.run("vm", "load", "--qmp", other.qmp, made["id"], "--paused")
    assert other.ask("query-status")["status"] == "paused"
    other.ask("cont")
    assert other.console().run("cat /disk/f /run/f") == "then\nthen"
    other.close()
    lab.run("verify")


def test_what_cannot_be_recorded_changes_nothing(
    lab: Any, strange: Start, serve: Callable[[str], Path]
) -> None:
    _, disk = qcow2(lab)
    machine = strange(disk)
    lab.wait_until(machine.qmp.exists)
    lab.run("import", lab.guest.disk, "--volume", "system", "-b", "web")
    serve("web")
    error = lab.run("vm", "attach", "--qmp", machine.qmp, "web", "--json", code=4)
    assert error["error"]["kind"] == "disk-elsewhere"
    with Monitor(machine.qmp) as monitor:
        capability = [{"capability": "xbzrle", "state": True}]
        monitor.execute("migrate-set-capabilities", capabilities=capability)
    error = lab.run("vm", "attach", "--qmp", machine.qmp, "new", "--json", code=None)
    assert error["error"]["kind"] == "unsupported"
    assert {row["name"] for row in lab.run("branch", "--json")} == {"main", "web"}
    assert machine.ask("query-status")["status"] == "running"
    assert lab.run("vm", "attach", "--qmp", machine.qmp, "new", "--disk-only", "--json")["pause"]
    lab.run("vm", "attach", "--qmp", lab.path / "nowhere", "new", code=2)


def test_a_qemu_that_dies_while_it_is_recorded(lab: Any, strange: Start) -> None:
    _, disk = qcow2(lab)
    machine = strange(disk)
    machine.console().wait_for_shell()
    words = [*COMMAND, "-V", str(lab.path), "vm", "attach", "--qmp", str(machine.qmp), "web"]
    asking = subprocess.Popen(
        words, cwd=lab.path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "BLOCKVAULT_RUNTIME": str(lab.runtime)},
    )  # fmt: skip
    time.sleep(0.8)
    machine.close()
    _, said = asking.communicate(timeout=60)
    assert asking.returncode == 9, said
    assert "Traceback" not in said
    log = lab.run("log", "web", "--oneline", code=None)
    assert len(log.splitlines()) <= 1, "no half snapshot"
    lab.run("verify")
