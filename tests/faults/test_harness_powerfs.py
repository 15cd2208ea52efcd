"""The FUSE file system and the crash states, held against plain LMDB.

LMDB with its default flags must lose nothing, and must lose something with ``metasync=False`` or
``sync=False``: the positive controls that tell that these tools find what they look for.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blockvault import libc
from tests.faults import lmdb_case
from tools.faults.children import Child, Children, Outcome
from tools.faults.crash import enumerate_cuts
from tools.faults.disk import Mark, Op, Punch, Sync, Write
from tools.faults.mount import PowerMount

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITS = 20


def run_case(power: PowerMount, mode: str, first: int, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.faults.lmdb_case", str(power.path / "env"), mode]
    return subprocess.Popen(
        [*command, str(first), str(count), str(power.path)],
        cwd=REPOSITORY, stderr=subprocess.PIPE,
    )  # fmt: skip


def trace_of(power: PowerMount, mode: str) -> list[Op]:
    program = run_case(power, mode, 0, COMMITS)
    _, errors = program.communicate(timeout=30)
    assert program.returncode == 0, errors.decode()
    os.sync()
    return power.trace()


def check(ops: list[Op], wanted: int, seed: int, scratch: Path) -> list[Outcome]:
    cuts = enumerate_cuts(ops, wanted, seed, start=first_promise(ops))
    return Children("tests.faults.lmdb_case:crash_checker", ops, scratch).run(cuts)


def first_promise(ops: list[Op]) -> int:
    """Creating an environment is not atomic: only what follows the first commit is judged."""
    return next(n for n, op in enumerate(ops) if isinstance(op, Mark))


def test_files_behave_as_files(power: PowerMount) -> None:
    top = power.path
    (top / "d").mkdir()
    (top / "d/f").write_bytes(b"hello" * 10_000)
    with (top / "d/f").open("r+b") as file:
        file.seek(5)
        file.write(b"HELLO")
        file.truncate(15)
    os.replace(top / "d/f", top / "g")
    os.link(top / "g", top / "h")
    os.unlink(top / "g")
    assert (top / "h").read_bytes() == b"helloHELLOhello"
    assert sorted(os.listdir(top)) == ["d", "h"]
    (top / "x/y").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        os.rmdir(top / "x")
    with pytest.raises(FileNotFoundError):
        (top / "nope").read_bytes()
    with pytest.raises(FileExistsError):
        (top / "d").mkdir()


def test_an_open_file_outlives_its_name(power: PowerMount) -> None:
    with (power.path / "f").open("w+b") as file:
        file.write(b"still here")
        file.flush()
        os.unlink(power.path / "f")
        file.seek(0)
        assert file.read() == b"still here"


def test_a_hole_reads_as_zeros_through_a_mapping_too(power: PowerMount) -> None:
    with (power.path / "f").open("w+b") as file:
        file.write(b"x" * 16384)
        file.flush()
        with mmap.mmap(file.fileno(), 16384) as mapped:
            assert mapped[8192] == ord("x")
            assert libc.punch_hole(file.fileno(), 4096, 8192)
            assert mapped[4095:12289] == b"x" + bytes(8192) + b"x"
    assert [op[1:] for op in power.trace() if isinstance(op, Punch)] == [(4096, 8192)]


def test_sync_and_mark_stand_in_the_trace_where_they_happened(power: PowerMount) -> None:
    ops = trace_of(power, "safe")
    assert sum(isinstance(op, Sync) for op in ops) >= COMMITS
    assert sum(isinstance(op, Write) and op.durable for op in ops) >= COMMITS
    shown = [type(op).__name__ for op in ops if not (isinstance(op, Write) and not op.durable)]
    assert shown[-6:] == ["Sync", "Write", "Mark"] * 2


@pytest.mark.parametrize("mode", lmdb_case.MODES)
def test_enumerated_crash_states(power: PowerMount, scratch: Path, seed: int, mode: str) -> None:
    outcomes = check(trace_of(power, mode), 400 if mode == "safe" else 200, seed, scratch / "s")
    assert len(outcomes) > 120
    bad = [outcome for outcome in outcomes if outcome.wrong]
    if mode == "safe":
        assert not bad, bad[:3]
    else:
        assert bad, "the harness cannot see a lost commit"


@pytest.mark.parametrize("mode", lmdb_case.MODES)
def test_power_cuts_carried_over(power: PowerMount, seed: int, mode: str) -> None:
    """Each cycle starts with what the last cut left, and may write until the power fails."""
    lost: list[Outcome] = []
    promised: list[int] = []
    with Child("tests.faults.lmdb_case:promise_checker") as child:
        for cycle in range(12):
            if cycle:  # the first cycle makes the environment, and its power holds
                power.arm(5 + (seed + cycle * 7919) % 100)
            program = run_case(power, mode, len(promised), 200 if cycle else 3)
            program.communicate(timeout=30)
            ops = power.cut(seed + cycle)
            promised += lmdb_case.numbers([op.text for op in ops if isinstance(op, Mark)])
            outcome = child.ask((power.path / "env", promised))
            if outcome.wrong:
                lost.append(outcome)
                break
    if mode == "safe":
        assert not lost
        assert len(promised) > 12
    else:
        assert lost, "the harness cannot see a lost commit"
