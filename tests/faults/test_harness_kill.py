"""Killing programs, held against plain LMDB, and a control that has nothing to survive with."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest

from tests.faults import lmdb_case
from tools.faults.kill import EndedEarly, Victim, until

FORGETFUL = """
import os, sys
kept = []
number = 0
while True:  # promises first, writes in batches of four
    os.write(1, b"%d\\n" % number)
    kept.append(number)
    number += 1
    if len(kept) == 4:
        with open(sys.argv[1], "a") as file:
            file.write("".join(f"{n}\\n" for n in kept))
        kept.clear()
"""


def lmdb_victim(env: Path, first: int, count: int = 100_000) -> Victim:
    module = "tests.faults.lmdb_case"
    return Victim([sys.executable, "-m", module, str(env), "safe", str(first), str(count)])


def test_killed_writers_of_lmdb_lose_nothing(scratch: Path, seed: int) -> None:
    rng, env, promised = random.Random(seed), scratch / "env", [-1]
    for _ in range(6):
        victim = lmdb_victim(env, promised[-1] + 1)
        victim.wait_for(1)
        time.sleep(rng.random() / 20)
        promised += lmdb_case.numbers(victim.kill())
        assert not lmdb_case.missing(env, promised[1:])
    assert len(promised) > 20


def test_a_program_that_promises_too_early_is_caught(scratch: Path) -> None:
    lost = 0
    for attempt in range(8):
        path = scratch / f"file{attempt}"
        victim = Victim([sys.executable, "-c", FORGETFUL, str(path)])
        victim.wait_for(10 + attempt)
        promised = victim.kill()
        lost += len(set(promised) - set(path.read_text().split()))
    assert lost, "the harness cannot see a broken promise"


def test_a_victim_that_ends_by_itself_tells_how() -> None:
    victim = Victim([sys.executable, "-c", "print('once'); raise SystemExit(3)"])
    victim.wait_for(5, ended_is_fine=True)
    assert victim.join() == 3
    assert victim.lines == ["once"]


def test_who_waits_for_more_than_a_victim_promises_is_told_why() -> None:
    victim = Victim([sys.executable, "-c", "import sys; print('once'); sys.exit('broken')"])
    with pytest.raises(EndedEarly, match=r"promised 1 of 2: broken"):
        victim.wait_for(2)


def test_what_a_victim_says_on_stderr_is_kept() -> None:
    victim = Victim([sys.executable, "-c", "import sys; sys.exit('wrong')"])
    assert victim.join() == 1
    assert victim.errors == "wrong\n"


def test_a_stopped_victim_promises_nothing(scratch: Path) -> None:
    victim = lmdb_victim(scratch / "env", 0)
    victim.wait_for(3)
    victim.stop()
    until(lambda: Path(f"/proc/{victim.pid}/stat").read_text().split()[2] == "T", "stop")
    time.sleep(0.05)
    before = len(victim.lines)
    time.sleep(0.1)
    assert len(victim.lines) == before
    victim.resume()
    victim.wait_for(before + 1)
    assert victim.kill()


def test_waiting_for_what_never_happens_ends() -> None:
    with pytest.raises(TimeoutError, match="pigs"):
        until(lambda: False, "pigs", deadline=0.02)
