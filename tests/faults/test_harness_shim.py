"""The preloaded shim, held against plain LMDB and a program of ten lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import lmdb_case
from tools.faults.shim import NAMES, SYNCS, WRITES, Fault, Shim

REPOSITORY = Path(__file__).resolve().parents[2]

WRITER = """
import ctypes, os, sys
top = sys.argv[1]
def punch():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)):
        raise OSError(ctypes.get_errno(), "no hole")
fd = os.open(top + "/file", os.O_RDWR | os.O_CREAT)
sys.stderr.write("not counted: not below the path\\n")
calls = [
    lambda: os.write(fd, b"w" * 10),
    lambda: os.pwrite(fd, b"p" * 10, 10),
    lambda: os.writev(fd, [b"v" * 5, b"v" * 5]),
    lambda: os.pwritev(fd, [b"q" * 4, b"q" * 6], 20),
    lambda: os.ftruncate(fd, 100),
    lambda: os.posix_fallocate(fd, 0, 200),
    punch,
    lambda: os.fsync(fd),
    lambda: os.fdatasync(fd),
    lambda: os.mkdir(top + "/dir"),
    lambda: os.link(top + "/file", top + "/link"),
    lambda: (os.chdir(top), os.rename("file", "name"))[1],
]
for call in calls:
    try:
        print(call())
    except OSError as error:
        print(error.errno)
"""


def run_writer(shim: Shim, fault: Fault, top: Path) -> tuple[int, list[str], int, str]:
    top.mkdir()
    with shim.fault(fault) as armed:
        done = subprocess.run(
            [sys.executable, "-c", WRITER, str(top)], env=armed.env, capture_output=True, text=True
        )
        return done.returncode, done.stdout.split(), armed.count, armed.hit


PLAIN = ["10", "10", "10", "10", *["None"] * 8]
KINDS = ["write", "pwrite", "writev", "pwritev", "ftruncate", "fallocate", "fallocate",
         "fsync", "fdatasync", "mkdir", "link", "rename"]  # fmt: skip


def test_without_a_fault_all_is_counted_and_nothing_changed(shim: Shim, tmp_path: Path) -> None:
    top = tmp_path / "top"
    done = run_writer(shim, Fault(action="eio", nth=0, below=top), top)
    assert done == (0, PLAIN, 12, "")
    assert (top / "name").stat().st_size == 200


@pytest.mark.parametrize(("action", "number"), [("eio", "5"), ("enospc", "28")])
@pytest.mark.parametrize("nth", range(1, 13))
def test_each_call_can_be_refused(
    shim: Shim, tmp_path: Path, action: str, number: str, nth: int
) -> None:
    top = tmp_path / "top"
    code, said, count, hit = run_writer(shim, Fault(action=action, nth=nth, below=top), top)
    assert (code, count) == (0, 12)
    assert said == [*PLAIN[: nth - 1], number, *PLAIN[nth:]]
    assert hit.split() == [KINDS[nth - 1], hit.split()[1]]


def test_sticky_refuses_all_that_follow(shim: Shim, tmp_path: Path) -> None:
    top = tmp_path / "top"
    said = run_writer(shim, Fault(action="eio", nth=3, below=top, sticky=True), top)[1]
    assert said == ["10", "10", *["5"] * 10]


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_short_writes_move_half(shim: Shim, tmp_path: Path, nth: int) -> None:
    top = tmp_path / "top"
    said = run_writer(shim, Fault(action="short", nth=nth, below=top), top)[1]
    assert said == [*PLAIN[: nth - 1], "5", *PLAIN[nth:]]


def test_killed_before_a_call(shim: Shim, tmp_path: Path) -> None:
    top = tmp_path / "top"
    code = run_writer(shim, Fault(action="kill", nth=2, below=top), top)[0]
    assert code == -9
    assert (top / "file").read_bytes() == b"w" * 10


@pytest.mark.parametrize(("size", "offset", "left"), [
    (10, 0, 0), (511, 100, 0), (1024, 0, 512), (1500, 100, 412), (8192, 512, 4096),
])  # fmt: skip
def test_torn_between_two_sectors(
    shim: Shim, tmp_path: Path, size: int, offset: int, left: int
) -> None:
    program = f"""
import os
fd = os.open("file", os.O_RDWR | os.O_CREAT)
os.pwritev(fd, [b"x" * {size // 2}, b"x" * {size - size // 2}], {offset})
"""
    with shim.fault(Fault(action="torn", nth=1, below=tmp_path)) as armed:
        done = subprocess.run([sys.executable, "-c", program], env=armed.env, cwd=tmp_path)
    assert done.returncode == -9
    assert (tmp_path / "file").stat().st_size == (offset + left if left else 0)


def test_only_listed_calls_and_paths_count(shim: Shim, tmp_path: Path) -> None:
    elsewhere = Fault(action="eio", nth=0, below=tmp_path / "no")
    assert run_writer(shim, elsewhere, tmp_path / "a")[2] == 0
    for calls, expected in ((WRITES, 7), (SYNCS, 2), (NAMES, 3)):
        top = tmp_path / f"top{expected}"
        fault = Fault(action="eio", nth=0, below=top, calls=calls)
        assert run_writer(shim, fault, top)[2] == expected


def run_lmdb(shim: Shim, fault: Fault, mode: str = "safe") -> tuple[int, list[int], int]:
    with shim.fault(fault) as armed:
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.lmdb_case", str(fault.below), mode, "0", "12"],
            cwd=REPOSITORY, env=armed.env, capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, lmdb_case.numbers(done.stdout.split()), armed.count


@pytest.mark.parametrize("action", ["eio", "enospc", "short", "torn", "kill"])
def test_lmdb_keeps_its_promises_whatever_fails(shim: Shim, scratch: Path, action: str) -> None:
    made = run_lmdb(shim, Fault(action="eio", nth=0, below=scratch / "count"))
    assert made[:2] == (0, list(range(12)))
    for nth in range(8, made[2] + 1, 5):
        env = scratch / f"env{nth}"
        code, promised, _ = run_lmdb(shim, Fault(action=action, nth=nth, below=env))
        assert code != 0 or promised == list(range(12))
        assert not promised or not lmdb_case.missing(env, promised), f"{action} at call {nth}"


def test_a_sync_that_is_never_made_never_fails(shim: Shim, scratch: Path) -> None:
    """The control: with sync=False LMDB does not hear of a disk that refuses every sync."""
    calls = ("fdatasync", "msync")
    fault = Fault(action="eio", nth=3, below=scratch / "a", sticky=True, calls=calls)
    assert run_lmdb(shim, fault)[0] == 1
    fault = Fault(action="eio", nth=3, below=scratch / "b", sticky=True, calls=calls)
    assert run_lmdb(shim, fault, "no-sync")[:2] == (0, list(range(12)))
