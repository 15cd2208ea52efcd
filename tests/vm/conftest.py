"""Real machines for the tests: the guest of tools/guest under QEMU, run by the real program."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from blockvault.cli.common import Command
from blockvault.cli.vm_cmd import run as machines

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # tools/ is not installed

from tests.conftest import skip  # noqa: E402
from tools.guest.build import Guest, NoGuest, build  # noqa: E402
from tools.guest.console import Console  # noqa: E402

COMMAND = [sys.executable, "-m", "blockvault.cli.main"]
MEMORY = "128M"


@pytest.fixture(scope="session")
def guest(need_tool: Callable[[str], str]) -> Guest:
    """The guest's kernel, initramfs and disk, built once and kept in the user's cache."""
    for tool in ("qemu-system-x86_64", "mke2fs", "apt-get", "dpkg-deb"):
        need_tool(tool)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        return build(cache / "blockvault-guest")
    except NoGuest as reason:
        skip(f"no guest: {reason}")


def check_shape(name: str, rows: list[dict[str, Any]]) -> None:
    """What a command prints has the fields that its documentation names."""
    made = machines.get_command(click.Context(machines), name)
    assert isinstance(made, Command)
    documented = {re.split(r"[.\[]", path)[0] for path in made.shape}
    for row in rows:
        assert row.keys() == documented, name


class Lab:
    """A vault in a directory, machines that run from it, and their consoles."""

    def __init__(self, path: Path, runtime: Path, guest: Guest) -> None:
        self.path = path
        self.runtime = runtime
        self.guest = guest
        self._consoles: dict[str, Console] = {}

    def run(self, *words: str | Path, code: int | None = 0, **env: str) -> Any:
        """Run a command; its JSON where it prints some, else its text; or its error with code."""
        words = ("-V", self.path, *words)
        settings = {"BLOCKVAULT_RUNTIME": str(self.runtime), "PYTHONPATH": str(ROOT)} | env
        done = subprocess.run(
            [*COMMAND, *map(str, words)], cwd=self.path, env={**os.environ, **settings},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        shown = f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert code is None or done.returncode == code, shown
        assert "Traceback" not in done.stderr, shown
        text = done.stderr if done.returncode else done.stdout
        if "--json" not in words:
            return text
        found = [json.loads(line) for line in text.splitlines()]
        if words[2] == "vm" and not done.returncode:
            check_shape(str(words[3]), found)
        return found[0] if len(found) == 1 else found

    def create(self, branch: str = "main", *extra: str, memory: str = MEMORY) -> None:
        g = self.guest
        boot = ["--kernel", g.kernel, "--initrd", g.initrd, "--append", g.append]
        disk = ["--disk", f"vda={g.disk}"]
        self.run("vm", "create", branch, "--memory", memory, *disk, *boot, *extra)

    def start(self, branch: str = "main", *extra: str) -> Console:
        """Start a machine and wait for its shell."""
        self.run("vm", "start", branch, *extra)
        console = self.console(branch)
        console.wait_for_shell()
        return console

    def console(self, branch: str = "main") -> Console:
        """The console of a running machine; an earlier one is closed."""
        if branch in self._consoles:
            self._consoles.pop(branch).close()
        self._consoles[branch] = Console(self.machine(branch)["serial"])
        return self._consoles[branch]

    def status(self, branch: str = "main") -> dict[str, Any]:
        found = self.run("vm", "list", "--json")
        rows = found if isinstance(found, list) else [found]
        return next(row for row in rows if row["branch"] == branch)

    def machine(self, branch: str = "main") -> dict[str, Any]:
        found = self.run("status", "--json")
        rows = found if isinstance(found, list) else [found]
        return next(row["machine"] for row in rows if branch in row["branches"])

    def snapshot(self, branch: str = "main", message: str = "", *extra: str) -> dict[str, Any]:
        result: dict[str, Any] = self.run("vm", "snapshot", branch, "-m", message, "--json", *extra)
        return result

    def check_disk(self, rev: str) -> None:
        """The file system at a revision is clean after its journal was replayed."""
        self.check_disk_of(rev, "vda")

    def check_disk_of(self, rev: str, volume: str) -> None:
        image = self.path / "check.img"
        self.run("export", f"{rev}:{volume}", image, "--force")
        fsck = shutil.which("e2fsck", path="/usr/sbin:/sbin") or "e2fsck"
        replayed = subprocess.run([fsck, "-fy", image], capture_output=True, text=True, check=False)
        assert replayed.returncode in (0, 1), replayed.stdout
        again = subprocess.run([fsck, "-fn", image], capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stdout
        assert "corrupt" not in replayed.stdout.lower(), replayed.stdout

    def wait_until(self, ready: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.05)

    def close(self) -> None:
        """End what still runs: supervisors and QEMUs of this vault alone."""
        for console in self._consoles.values():
            console.close()
        for state in self.runtime.glob("*/state.json"):
            known = json.loads(state.read_text())
            for name in ("qemu", "supervisor"):
                process = known[name]
                if process and _alive(process):
                    os.kill(process["pid"], signal.SIGKILL)
        shutil.rmtree(self.runtime, ignore_errors=True)


def _alive(process: dict[str, int]) -> bool:
    from blockvault.vm.rundir import Process

    return Process(**process).alive


@pytest.fixture
def lab(guest: Guest, tmp_path: Path) -> Iterator[Lab]:
    """An empty vault and no machine."""
    made = Lab(tmp_path, Path(f"/dev/shm/bvt-{os.getpid()}-{time.monotonic_ns() % 10**9}"), guest)
    made.run("init", tmp_path)
    try:
        yield made
    finally:
        made.close()
