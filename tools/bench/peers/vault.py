"""blockvault through its command line, exactly as a user would type it.

Small guest writes between measured commands are not what a row measures; they go through the
Python API (``tools.bench.guest``), which needs no server.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tools.bench.commands import Command, command, environment
from tools.bench.peers.base import Archive, Machine, first_version

ROOT = Path(__file__).parents[3]
VOLUME = "disk"


def program() -> tuple[str, ...]:
    """How blockvault is started: the installed script of this interpreter, or the module."""
    script = Path(sys.executable).with_name("blockvault")
    found = str(script) if script.exists() else shutil.which("blockvault")
    return (found,) if found else (sys.executable, "-m", "blockvault.cli.main")


def offers(*words: str) -> bool:
    """Whether blockvault has a command; asked of the program itself."""
    done = subprocess.run(
        [*program(), *words, "--help"], capture_output=True, check=False, env=environment({})
    )
    return done.returncode == 0


class Blockvault(Archive, Machine):
    """Defaults throughout: 4 KiB blocks, zstd level 3."""

    name = "blockvault"
    title = "blockvault, 4 KiB, zstd 3"
    no_diff = ""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.saved: dict[str, list[str]] = defaultdict(list)  # states by machine, in order
        self.snapshots: list[str] = []
        self.tags: set[str] = set()

    @classmethod
    def missing(cls) -> str | None:
        return None if offers("import") else "its command line is not built yet"

    @classmethod
    def version(cls) -> str:
        return first_version(*program(), "--version")

    def start(self) -> list[Command]:
        return [self._run("--version")]

    def help(self) -> list[Command]:
        """The first thing that a person types."""
        return [self._run("--help")]

    def create(self) -> list[Command]:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return [command(*program(), "init", self.folder)]

    def save(self, image: Path, state: str, machine: str) -> list[Command]:
        self.saved[machine].append(state)
        words = ("import", image, "-b", machine, "--volume", VOLUME, "-m", state)
        return [self._run(*words)]

    def restore(self, state: str, target: Path) -> list[Command]:
        return self.export(self._revision(state), target)

    def export(self, revision: str, target: Path) -> list[Command]:
        return [self._run("export", f"{revision}:{VOLUME}", target)]

    def verify(self) -> list[Command]:
        return [self._run("verify")]

    def forget(self, gone: Sequence[str], kept: Sequence[str]) -> list[Command]:
        rules = ("--keep-last", "1", "--keep-events", "0")
        return [self._run("prune", "-b", "main", *rules, "--gc")]

    def litter(self, image: Path, name: str) -> list[Command]:
        """What ``collect`` will find: a disk that was stored, and forgotten with its branch."""
        return [
            self._run("import", image, "-b", name, "--volume", VOLUME, "-m", name),
            self._run("branch", "-d", name),
            self._run("prune", "--keep-last", "1", "--keep-events", "0"),
        ]

    def collect(self) -> list[Command]:
        return [self._run("gc")]

    def diff(self, old: str, new: str) -> list[Command]:
        return [self._run("diff", "--extents", self._revision(old), self._revision(new))]

    def create_disk(self, size: int, image: Path) -> list[Command]:
        self.snapshots.append("first")
        words = ("import", image, "-b", "main", "--volume", VOLUME, "-m", "first")
        return [*self.create(), self._run(*words)]

    def change(self, offset: int, seed: int, count: int = 1, stride: int = 4096) -> list[Command]:
        return [self._guest("write", offset, seed, count, stride)]

    def snapshot(self, name: str) -> list[Command]:
        self.snapshots.append(name)
        return [self._run("snapshot", "-b", "main", "-m", name)]

    def branch(self, name: str, snapshot: str) -> list[Command]:
        return [self._run("branch", name, self._snapshot(snapshot))]

    def tag(self, name: str, snapshot: str) -> list[Command]:
        return [self._run("tag", name, self._snapshot(snapshot))]

    def rollback(self, snapshot: str) -> list[Command]:
        revision = self._snapshot(snapshot)
        del self.snapshots[self.snapshots.index(snapshot) + 1 :]
        return [self._run("rollback", "main", revision)]

    def compare(self, old: str, new: str) -> list[Command]:
        return [self._run("diff", "--extents", self._snapshot(old), self._snapshot(new))]

    def read_old(self, snapshot: str) -> list[Command]:
        words = ("--offset", "0", "--length", "4096")
        return [self._run("cat", f"{self._snapshot(snapshot)}:{VOLUME}", *words)]

    def grow(self, names: Sequence[str]) -> list[Command]:
        """The first of all is tagged, as one would whose snapshot is to be found again."""
        self.snapshots.extend(names)
        grown = [self._guest("grow", len(names))]
        if not self.tags:
            grown.append(self._run("tag", names[0], self._snapshot(names[0])))
            self.tags.add(names[0])
        return grown

    def nest(self, branches: int) -> list[Command]:
        """Branches ``nested-0`` … one out of the other, each with a change and a snapshot."""
        return [self._guest("nest", branches)]

    def _revision(self, state: str) -> str:
        """``main~N`` for a state that was saved N imports before the newest."""
        for machine, states in self.saved.items():
            if state in states:
                return f"{machine}~{len(states) - 1 - states.index(state)}"
        raise KeyError(state)

    def _snapshot(self, name: str) -> str:
        if name in self.tags:
            return name
        return f"main~{len(self.snapshots) - 1 - self.snapshots.index(name)}"

    def _run(self, *words: str | Path) -> Command:
        return command(*program(), "-V", self.folder, *words)

    def _guest(self, *words: str | int) -> Command:
        start = (sys.executable, "-m", "tools.bench.guest", str(self.folder), VOLUME)
        return command(*start, *map(str, words), cwd=ROOT)
