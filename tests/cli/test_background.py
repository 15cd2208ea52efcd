"""The fork that becomes a machine's process: without a machine nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest


def processes_in(folder: Path) -> list[int]:
    """Those that have this working directory."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(each / "cwd") == os.path.realpath(folder):
                found.append(int(each.name))
    return found


@pytest.mark.parametrize(
    "words", [("start", "nowhere"), ("start", "main"), ("clone", "main", "new")]
)
def test_a_command_that_fails_leaves_no_process(world: Any, words: tuple[str, ...]) -> None:
    world("vm", *words, code=3)
    deadline = time.monotonic() + 10
    while left := processes_in(world.path):
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.02)


def test_a_process_that_stays_would_be_found(tmp_path: Path) -> None:
    """The control."""
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        try:
            assert processes_in(tmp_path) == [process.pid]
        finally:
            process.kill()
