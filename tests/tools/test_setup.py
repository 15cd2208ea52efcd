"""What tools/test and tools/demo begin with: the right Python, and what they ask apt for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[2] / "tools" / "setup.sh"
PYTHON = """#!/bin/sh
case "$*" in
    -V) echo Python {version} ;;
    *version_info*) exit {old:d} ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
"""


class System:
    """A machine with these programs and no others, and a working copy."""

    def __init__(self, root: Path) -> None:
        self.bin, self.home, self.notes = root / "bin", root / "home", root / "notes"
        for folder in (self.bin, self.home):
            folder.mkdir()
        self.notes.touch()
        plain = ("cat", "cp", "dirname", "ls", "mkdir", "mktemp", "rm", "sh", "sort", "tail")
        for name in (*plain, "touch", "tr"):
            (self.bin / name).symlink_to(shutil.which(name) or name)
        for minor in range(11, 15):  # of a system whose sbin is its bin
            self.program(f"python3.{minor}", "exit 1")
        self.program("id", "echo 0")
        self.program("apt-get", f'echo "$*" >>{self.notes}')
        (self.home / "pyproject.toml").touch()

    def program(self, name: str, script: str) -> None:
        self.write(self.bin / name, f"#!/bin/sh\n{script}\n")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def python(self, path: str | Path, version: str) -> None:
        old = tuple(map(int, version.split("."))) < (3, 11)
        self.write(self.bin / path, PYTHON.format(version=version, old=old))

    def set_up(self, steps: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shutil.which("bash") or "bash", "-c", f"set -euo pipefail; . {SETUP}; {steps}"],
            cwd=self.home,
            env={"PATH": str(self.bin), "TMPDIR": str(self.home), **env},
            capture_output=True,
            text=True,
        )

    def asked_of_apt(self) -> str:
        return self.notes.read_text()


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


ALL = "need_programs; make_environment dev"


def test_an_old_python_is_refused_before_anything_is_installed(system: System) -> None:
    system.python("python3", "3.10")
    done = system.set_up(ALL)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer, and python3 is Python 3.10" in done.stderr
    assert system.asked_of_apt() == ""
    assert not (system.home / ".venv").exists()


def test_python_is_asked_of_apt_where_there_is_none(system: System) -> None:
    done = system.set_up(ALL)
    assert "python3-venv" in system.asked_of_apt()
    assert "python3 is missing" in done.stderr, "apt did not bring it"


@pytest.mark.parametrize(
    ("pythons", "env", "made"),
    [
        ({"python3": "3.12"}, {}, "3.12"),
        ({"python3": "3.10", "python3.11": "3.11"}, {}, "3.11"),
        ({"python3": "3.12", "own": "3.13"}, {"PYTHON": "own"}, "3.13"),
        ({"python3": "3.12", "own": "3.10"}, {"PYTHON": "own"}, "3.12"),
        ({"python3": "3.12", "../home/.venv/bin/python": "3.10"}, {}, "3.12"),
        ({"python3": "3.12", "../home/.venv/bin/python": "3.11"}, {}, "3.11"),
        ({"python3": "3.10", "../home/.venv/bin/python": "3.11"}, {}, "3.11"),
    ],
)
def test_the_first_python_that_will_do_makes_the_environment(
    system: System, pythons: dict[str, str], env: dict[str, str], made: str
) -> None:
    for path, version in pythons.items():
        system.python(path, version)
    done = system.set_up(ALL, **env)
    assert done.returncode == 0, done.stderr
    assert f"Python {made}" in (system.home / ".venv/bin/python").read_text()


def test_an_environment_that_is_made_anew_is_said_to_be(system: System) -> None:
    system.python("python3", "3.12")
    for version, anew in (("3.10", True), ("3.12", False)):
        system.python(system.home / ".venv/bin/python", version)
        assert ("making .venv anew" in system.set_up(ALL).stderr) == anew


def test_an_environment_whose_python_is_gone_is_made_anew(system: System) -> None:
    system.python("python3", "3.12")
    python = system.home / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(system.home / "removed")
    done = system.set_up(ALL)
    assert done.returncode == 0, done.stderr
    assert "making .venv anew" in done.stderr
    assert "Python 3.12" in python.read_text()


def later_python(folder: Path) -> Path:
    """An environment with the Python that runs this, made by an earlier one; its packages."""
    python = Path(sys.executable).resolve()
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(python)
    (folder / "pyvenv.cfg").write_text(f"home = {python.parent}\n")
    return folder / f"lib/python3.{sys.version_info.minor}/site-packages"


def test_an_environment_of_another_python_is_made_anew(system: System) -> None:
    system.python("python3", "3.12")
    packages = later_python(system.home / ".venv")
    assert "making .venv anew" in system.set_up(ALL).stderr
    packages = later_python(system.home / "own")
    done = system.set_up(ALL, BLOCKVAULT_VENV="own")
    assert (done.returncode, "made by another Python" in done.stderr) == (1, True)
    packages.mkdir(parents=True)  # the control
    (system.home / "own/.blockvault-dev").touch()
    assert system.set_up("make_environment dev", BLOCKVAULT_VENV="own").stderr == ""


def test_an_old_environment_of_somebody_else_is_left_alone(system: System) -> None:
    system.python("python3", "3.12")
    system.python(system.home / "own/bin/python", "3.10")
    done = system.set_up(ALL, BLOCKVAULT_VENV="own")
    assert done.returncode == 1
    assert "own/bin/python is Python 3.10" in done.stderr
    assert "Python 3.10" in (system.home / "own/bin/python").read_text()


def test_a_peer_that_apt_has_not_is_left_out_and_said(system: System) -> None:
    system.python("python3", "3.12")
    system.program("apt-cache", '[ "$*" != "show casync" ]')
    done = system.set_up("need_programs")
    assert done.returncode == 0, done.stderr
    asked = set(system.asked_of_apt().splitlines()[-1].split())
    assert {"borgbackup", "bup", "restic", "gcc"} <= asked
    assert "casync" not in asked
    assert "not to be had: " in done.stderr
    assert "casync" in done.stderr.splitlines()[-1]


PEERS = 'need_programs "${peers[@]}"'


@pytest.fixture
def no_casync(system: System) -> System:
    """One on which all is installed but a peer that apt has not."""
    system.python("python3", "3.12")
    for name in ("borg", "restic", "bup"):
        system.program(name, "")
    listed = 'case "$1" in policy) echo " 500 http://deb.debian.org/debian Packages";; esac'
    system.program("apt-cache", f'{listed}; [ "$*" != "show casync" ]')
    return system


def test_a_peer_that_nobody_has_costs_nothing(no_casync: System) -> None:
    """Neither root, with a network or without, nor who is told what to install."""
    no_casync.program("apt-get", f'echo "$*" >>{no_casync.notes}; exit 100')
    for user in (0, 1000):
        no_casync.program("id", f"echo {user}")
        done = no_casync.set_up(PEERS)
        assert (done.returncode, "not to be had: casync" in done.stderr) == (0, True), done.stderr
        assert "apt-get install" not in done.stderr
    assert no_casync.asked_of_apt() == ""


def test_what_is_told_to_be_installed_can_be(no_casync: System) -> None:
    no_casync.program("id", "echo 1000")
    (no_casync.bin / "bup").unlink()
    done = no_casync.set_up(PEERS)
    assert "not installed: bup casync (sudo apt-get install bup)" in done.stderr


def test_apt_without_lists_is_asked_for_them_before_it_is_believed(no_casync: System) -> None:
    lists = no_casync.home / "lists"
    no_casync.program("apt-get", f'echo "$*" >>{no_casync.notes}; : >{lists}')
    no_casync.program("apt-cache", f"[ -e {lists} ]")
    assert no_casync.set_up(PEERS).returncode == 0
    asked = no_casync.asked_of_apt().splitlines()
    assert asked[0] == "-qq update"
    assert asked[-1].endswith(" casync")


def test_a_log_that_the_environment_names_is_not_that_of_apt(system: System) -> None:
    system.python("python3", "3.12")
    own = system.home / "own.log"
    own.write_text("kept\n")
    done = system.set_up("need_programs", log=str(own))
    assert "install" in system.asked_of_apt(), done.stderr
    assert own.read_text() == "kept\n"


LISTED = "500 http://deb.debian.org/debian stable/main amd64 Packages"
INSTALLED = "100 /var/lib/dpkg/status"


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        ([LISTED], ""),
        ([LISTED, INSTALLED], ""),
        ([INSTALLED], "-qq update\n"),
        ([], "-qq update\n"),
    ],
    ids=["listed", "listed and installed", "installed", "not known"],
)
def test_apt_is_asked_for_its_lists_only_where_it_has_none(
    system: System, known: list[str], asked: str
) -> None:
    system.python("python3", "3.12")
    words = " ".join(f'"{line}"' for line in known)
    system.program("apt-cache", f'[ "$*" != "policy busybox-static" ] || printf "%s\\n" {words}')
    assert system.set_up("know_packages").returncode == 0
    assert system.asked_of_apt() == asked
