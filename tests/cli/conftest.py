"""The real program, run as a process of its own, and a small vault with some history."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, "-m", "blockvault.cli.main"]
BLOCK = 4096


class Result(NamedTuple):
    """How a run of the program ended."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def json(self) -> dict[str, Any]:
        (only,) = self.lines
        return only


Program = Callable[..., Result]


def environment(**extra: str) -> dict[str, str]:
    """The tests' own environment, without what would change the program's behaviour."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BLOCKVAULT", "NO_COLOR"))}
    return kept | {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "TZ": "UTC"} | extra


def run(*words: str | Path, cwd: Path, code: int | None = 0, **extra: Any) -> Result:
    """Run the program in ``cwd``; fail unless it ends with ``code`` (None: any)."""
    env = environment(**extra.pop("env", {}))
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run(
        [*COMMAND, *map(str, words)], cwd=cwd, env=env, timeout=60, check=False, **(pipes | extra)
    )
    result = Result(done.returncode, done.stdout or b"", (done.stderr or b"").decode())
    line = " ".join(map(str, words)).encode(errors="backslashreplace").decode()
    shown = f"blockvault {line}\n{result.raw[-2000:]!r}\n{result.err}"
    assert code is None or result.code == code, f"ended with {result.code}: {shown}"
    assert "Traceback" not in result.err, shown
    return result


@pytest.fixture
def cli(tmp_path: Path) -> Program:
    """The program, run in an empty directory."""

    def call(*words: str | Path, **settings: Any) -> Result:
        return run(*words, **{"cwd": tmp_path, **settings})

    return call


def image(path: Path, blocks: dict[int, int], count: int = 2048, tail: int = 0) -> Path:
    """A sparse image of ``count`` blocks (and ``tail`` bytes), block number → seed of its bytes."""
    with open(path, "wb") as file:
        for number, seed in blocks.items():
            file.seek(number * BLOCK)
            file.write(random.Random(seed).randbytes(BLOCK))
        file.truncate(count * BLOCK + tail)
    return path


@pytest.fixture
def make_image(tmp_path: Path) -> Callable[..., Path]:
    """``make_image("name", {block: seed}, count=..., tail=...)`` in the test's directory."""

    def make(name: str, blocks: dict[int, int], **shape: int) -> Path:
        return image(tmp_path / name, blocks, **shape)

    return make


FIRST = {0: 1, 1: 2, 7: 3, 600: 4, 2047: 5}
SECOND = FIRST | {7: 30, 8: 31, 1500: 32}


class World(NamedTuple):
    """A directory with a vault and the images that went into it."""

    path: Path

    def __call__(self, *words: str | Path, **settings: Any) -> Result:
        return run(*words, **{"cwd": self.path, **settings})


def build(path: Path) -> World:
    """Two snapshots on main (vda; then vda changed and vdb new), a branch and a tag."""
    world = World(path)
    image(path / "first.img", FIRST)
    image(path / "second.img", SECOND)
    image(path / "data.img", {3: 9}, count=16, tail=100)
    world("init")
    world("import", "first.img", "--volume", "vda", "-m", "first", "--author", "ann")
    world("tag", "v1")
    words = ["second.img", "data.img", "--volume", "vda", "--volume", "vdb"]
    world("import", *words, "-m", "second\n\nmore to say", "--author", "bob")
    world("branch", "test", "main~1")
    return world


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The vault of ``build``, shared: for tests that only read."""
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    """A copy of the vault of ``build``: for tests that change it."""
    shutil.copytree(finished.path, tmp_path / "world")
    return World(tmp_path / "world")
