"""Commands as values, and the one way they are run and measured.

A contender returns ``Command`` values; ``run`` starts them one after another under ``launcher.py``
and adds up what they cost.  Nothing here knows what a command is for.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launcher.py")
# What would change a program's own speed, and is set on some machines for other reasons.
FORGOTTEN = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONDEVMODE", "PYTHONWARNINGS")
SBIN = ("/usr/sbin", "/sbin")  # which root's PATH has, but not every one that root is left with
END_SECONDS = 20.0
LOOK_SECONDS = 0.5


class CommandFailed(Exception):
    """A measured program failed, or took longer than it may; the text is one line for a table."""


@dataclass(frozen=True, slots=True)
class Command:
    """One program with its arguments; ``stdout`` names the file that takes its output."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    stdout: Path | None = None
    fine: tuple[int, ...] = (0,)


def command(
    *argv: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: Path | None = None,
    fine: tuple[int, ...] = (0,),
) -> Command:
    """A ``Command`` from words and paths as one writes them."""
    return Command(tuple(map(str, argv)), env or {}, cwd, stdout, fine)


@dataclass(frozen=True, slots=True)
class Cost:
    """What ``commands`` took together: seconds and bytes.  ``settle`` is the disk's sync after."""

    wall: float
    user: float
    system: float
    peak: int
    settle: float = 0.0
    commands: int = 1

    @property
    def cpu(self) -> float:
        return self.user + self.system


def run(
    commands: Sequence[Command],
    *,
    limit: float = 900.0,
    settle: bool = False,
    ended: threading.Event | None = None,
) -> Cost:
    """Run ``commands`` in order; costs add up, the peak is the highest.  ``CommandFailed`` if one
    ends with a status that it does not call fine, or if it takes more than ``limit`` seconds.
    With ``settle`` the disk is synced afterwards, timed apart, so that the next one starts clean.
    Who runs them in a thread, where no signal interrupts, ends them by ``ended``.
    """
    costs = [_run_one(each, limit, ended) for each in commands]
    return Cost(
        wall=sum(cost.wall for cost in costs),
        user=sum(cost.user for cost in costs),
        system=sum(cost.system for cost in costs),
        peak=max((cost.peak for cost in costs), default=0),
        settle=flush_disk() if settle else 0.0,
        commands=len(costs),
    )


def flush_disk() -> float:
    """Write back all that is dirty, file systems on loop devices too; returns the seconds."""
    start = time.perf_counter()
    os.sync()
    return time.perf_counter() - start


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a measured program: ours without what would slow it down, and with the
    folders of programs for root.
    """
    kept = {name: value for name, value in os.environ.items() if name not in FORGOTTEN}
    path = os.pathsep.join((kept.get("PATH", os.defpath), *SBIN))
    return {**kept, "PATH": path, "LC_ALL": "C.UTF-8", **extra}


def shown(commands: Sequence[Command], names: Mapping[Path, str]) -> list[str]:
    """The commands as a reader would type them, with long paths replaced by ``names``."""
    return [_shown_one(each, names) for each in commands]


def _shown_one(each: Command, names: Mapping[Path, str]) -> str:
    settings = [f"{name}={shlex.quote(value)}" for name, value in each.env.items()]
    text = " ".join([*settings, shlex.join(each.argv)])
    if each.stdout is not None:
        text += f" > {each.stdout}"
    for path in sorted(names, key=lambda path: -len(str(path))):
        text = text.replace(str(path), names[path])
    return text


def launch(each: Command, scratch: Path) -> subprocess.Popen[str]:
    """Start the launcher with a command; it prints the cost when that has ended.

    It leads a session of its own, so that a program and its children can be ended together.
    What the program says on stderr, and on stdout unless that has a file, goes to ``scratch``.
    """
    request = {
        "argv": each.argv,
        "env": environment(each.env),
        "cwd": str(each.cwd) if each.cwd else None,
        "stdout": str(each.stdout or scratch / "stdout"),
        "stderr": str(scratch / "stderr"),
    }
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(request)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def last_words(scratch: Path) -> str:
    """The last line that a launched program said on stderr."""
    stderr = scratch / "stderr"
    lines = stderr.read_text(errors="replace").strip().splitlines() if stderr.exists() else []
    return lines[-1][:200] if lines else "failed without a word"


def cost_of(report: str) -> tuple[Cost, int]:
    """What the launcher printed: the cost, and the program's exit status."""
    figures = json.loads(report)
    status: int = figures.pop("status")
    return Cost(**figures), status


def _run_one(each: Command, limit: float, ended: threading.Event | None) -> Cost:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        with launch(each, scratch) as launcher:
            try:
                report = _report(launcher, limit, ended)
            except subprocess.TimeoutExpired:
                raise CommandFailed(f"{each.argv[0]}: not done after {limit:.0f} s") from None
            finally:
                if launcher.poll() is None:
                    _end(launcher)
        cost, status = cost_of(report)
        if status not in each.fine:
            raise CommandFailed(f"{shlex.join(each.argv)[:120]}: {last_words(scratch)}")
    return cost


def _report(launcher: subprocess.Popen[str], limit: float, ended: threading.Event | None) -> str:
    """What the launcher prints when its program is done.  It is looked for seldom, and only where
    somebody may end it: looking takes time of the processors.
    """
    if ended is None:
        return launcher.communicate(timeout=limit)[0]
    until = time.monotonic() + limit
    while not ended.is_set():
        try:
            return launcher.communicate(timeout=LOOK_SECONDS)[0]
        except subprocess.TimeoutExpired:
            if time.monotonic() > until:
                raise
    raise CommandFailed("ended before it was done")


def _end(launcher: subprocess.Popen[str]) -> None:
    """End a program with its children; first they are asked to, since what some of them began
    outlives a kill: machines, mounts, memory that has a name.
    """
    os.killpg(launcher.pid, signal.SIGTERM)
    try:
        launcher.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
