"""Shared by the fault tests: room in memory, and what needs a privilege."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tools/ is not installed

from tests.conftest import skip
from tools.faults import mount
from tools.faults.shim import Shim


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory in memory when the machine has one: thousands of states pass through it."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="blockvault-faults-", dir=parent))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def power(scratch: Path) -> Iterator[mount.PowerMount]:
    """A mounted file system whose power can fail."""
    if reason := mount.available():
        skip(reason)
    with mount.PowerMount(scratch / "power") as mounted:
        yield mounted


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory, need_tool: Callable[[str], str]) -> Shim:
    """The LD_PRELOAD library, compiled for this run."""
    need_tool("cc")
    return Shim.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def mounts() -> None:
    """For tests that mount real file systems."""
    if os.geteuid():
        skip("mounting needs root")
