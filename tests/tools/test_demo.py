"""The demonstration works: its own comparisons end it at the first difference."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import skip
from tests.tools.test_setup import System

Demo = Callable[[str], subprocess.CompletedProcess[str]]
DEMO = Path(__file__).resolve().parents[2] / "tools" / "demo"


@pytest.fixture
def demo(need_tool: Callable[[str], str], tmp_path: Path) -> Demo:
    """``demo("folder")``: run it from the temporary directory."""
    for tool in ("mkfs.ext4", "debugfs", "e2fsck", "qemu-system-x86_64", "apt-get", "dpkg-deb"):
        need_tool(tool)
    if not (Path(sys.prefix) / ".blockvault-dev").exists():
        skip("needs the environment that tools/test makes")

    def run(folder: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"BLOCKVAULT_VENV": sys.prefix}
        return subprocess.run(
            [str(DEMO), folder], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    return run


def check_disks(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("byte for byte the same") == 2
    assert "tidied up" in done.stdout
    assert "\n|/\n" in done.stdout
    assert "OK:" in done.stdout


def test_demo(demo: Demo) -> None:
    done = demo("kept")
    check_disks(done)
    if "the machine is left out" in done.stderr:
        skip(done.stderr.strip())
    back = done.stdout[done.stdout.index("# Back:") :]
    assert "\nprecious\n" in back
    assert "\ntwin\n" in back


@pytest.mark.usefixtures("no_kernel_package")
def test_without_a_guest_the_machine_is_left_out(demo: Demo, tmp_path: Path) -> None:
    done = demo("kept")
    check_disks(done)
    reason, told = done.stderr.splitlines()[-2:]
    assert reason.startswith("no guest: ")
    assert told.endswith("the machine is left out")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "kept" / ".blockvault").is_dir(), "where one stands"


def test_a_folder_with_something_in_it_is_refused_at_once(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "used" / "files").mkdir(parents=True)
    done = demo("used")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"demo: {tmp_path / 'used'} is not empty\n"


@pytest.mark.parametrize("words", [("out",), ()], ids=["a folder", "a temporary one"])
def test_what_the_environment_calls_as_it_does_is_left_alone(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    """A demonstration that ends at its first command, since there is no Python's library."""
    system = System(tmp_path)
    named = {name: tmp_path / name for name in ("work", "kept")}
    for folder in named.values():
        folder.mkdir()
        (folder / "precious").touch()
    venv = system.home / "venv"
    system.python(venv / "bin/python", "3.12")
    system.python(venv / "bin/python3", "3.12")
    (venv / ".blockvault-dev").touch()
    env = {"BLOCKVAULT_VENV": str(venv), **{name: str(path) for name, path in named.items()}}
    done = system.set_up(f"{DEMO} {' '.join(words)}", **env)
    assert "A real disk" in done.stdout, done.stderr
    assert done.returncode != 0
    for folder in named.values():
        assert [path.name for path in folder.iterdir()] == ["precious"]
    left = {path.name for path in system.home.iterdir()}
    assert left == {"pyproject.toml", "venv", *words}
