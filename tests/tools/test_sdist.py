"""A source distribution passes the tests, and holds what the README names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tests.conftest import skip

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".ci", "blockvault", "docs", "tests", "tools")
FILES = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")
BUILD = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"


def setuptools_version() -> int:
    try:
        return int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        return 0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the project: building leaves files beside it."""
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for file in FILES:
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


def test_a_source_distribution_is_whole(source: Path) -> None:
    if setuptools_version() < 77:
        skip("needs the setuptools that tools/test installs")
    ours = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    (source / "tools" / "stale.pyc").touch()
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(source / "dist" / done.stdout.split()[-1]) as made:
        held = {member.name.partition("/")[2] for member in made if member.isfile()}
        modes = {member.name.partition("/")[2]: member.mode for member in made}
    made_up = {name for name in held if name.startswith("blockvault.egg-info/")}
    assert held - made_up == ours | {"PKG-INFO", "setup.cfg"}
    assert modes["tools/test"] & 0o100, "it can be run"
