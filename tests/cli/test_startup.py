"""Starting costs little: help comes within 150 ms, and nothing is imported before it is needed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.cli import main, tuning

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 0.150
HEAVY = {"lmdb", "zstandard", "msgpack", "rich", "asyncio", "json", "blockvault.vault"}


def environment() -> dict[str, str]:
    """As a user has it: compiled modules are kept."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(ROOT)}


def test_help_is_quick(tmp_path) -> None:
    """In processor time, which other programs on the machine hardly change."""
    command = [sys.executable, "-m", "blockvault.cli.main", "--help"]
    spent = []
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=tmp_path, env=environment(), check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if spent[-1] < LIMIT:
            return
    raise AssertionError(f"the best of {len(spent)} starts took {min(spent):.3f} s")


def test_help_imports_nothing_heavy(tmp_path) -> None:
    program = (
        "import sys\nfrom blockvault.cli.main import run\nassert run(['--help']) == 0\n"
        "print('\\n' + ' '.join(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    assert set(done.stdout.splitlines()[-1].split()) & HEAVY == set()


DEAR = {
    "cat": {"subprocess", "tempfile", "shutil"},
    "snapshot": {"subprocess", "tempfile", "shutil", "concurrent.futures", "logging"},
}


@pytest.mark.parametrize("command", DEAR)
def test_a_short_command_imports_nothing_dear(tmp_path, command) -> None:
    with Vault.create(tmp_path) as vault, vault.session() as session:
        session.create_volume("v", 8192).write(0, b"x")
        session.snapshot()
        session.device("v").write(4096, b"y")
    program = (
        "import sys\nfrom blockvault.cli.main import run\nassert run(sys.argv[1:]) == 0\n"
        "sys.stdout.flush()\nprint(' '.join(sys.modules), file=sys.stderr)\n"
    )
    words = [command] + (["main:v"] if command == "cat" else [])
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env=environment(),
        check=True,
        capture_output=True,
    )
    assert set(done.stderr.decode().split()) & DEAR[command] == set()


def test_version(cli) -> None:
    from blockvault import __version__

    assert cli("--version").out == f"blockvault {__version__}\n"


def test_the_program_sets_how_threads_take_turns(monkeypatch) -> None:
    """The installed program only: whoever uses the package sets the interpreter as they like."""
    before = sys.getswitchinterval()
    met = []
    monkeypatch.setattr(main, "run", lambda _: met.append(sys.getswitchinterval()) or 0)
    monkeypatch.setattr(os, "_exit", met.append)
    try:
        main.main()
    finally:
        sys.setswitchinterval(before)
    assert met == [pytest.approx(tuning.SWITCH_SECONDS), 0]
    assert before > tuning.SWITCH_SECONDS
