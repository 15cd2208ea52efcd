"""Power failures: nothing that was acknowledged is lost, whatever the disk kept.

Enumerated: a story runs on a file system that records every write and sync; the states that a power
cut may leave are derived from that trace, and each is opened, verified, compared and written to.
Live: the power fails at random moments under a counting writer, which then goes on with what the
disk kept, dozens of times over.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from blockvault import Vault
from blockvault.errors import IOFailed
from tests.faults import ledger
from tools.faults.channel import REPOSITORY
from tools.faults.children import Child, Children, Outcome
from tools.faults.crash import Cut, enumerate_cuts
from tools.faults.disk import Mark, Op
from tools.faults.mount import PowerMount

UNSAFE = ["no-sync", "no-metasync", "eager", "loose"]


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"tests.faults.{module}", *map(str, arguments)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def record(power: PowerMount, seed: int, steps: int, mode: str = "safe") -> list[Op]:
    done = run("story", power.path, seed, steps, power.path, mode)
    assert done.returncode == 0, done.stderr
    return power.trace()


def cuts_after_creation(ops: list[Op], wanted: int, seed: int) -> list[Cut]:
    start = next(n for n, op in enumerate(ops) if isinstance(op, Mark))
    return enumerate_cuts(ops, wanted, seed, start)


def wrong_states(
    ops: list[Op], cuts: list[Cut], scratch: Path, seed: int, steps: int
) -> list[Outcome]:
    checker = "tests.faults.crash_case:state_checker"
    outcomes = Children(checker, ops, scratch / "lanes", seed, steps).run(cuts)
    return [o for o in outcomes if o.wrong]


def test_crash_states_of_a_story(
    power: PowerMount, scratch: Path, seed: int, nightly: bool
) -> None:
    steps, wanted = (400, 30_000) if nightly else (70, 4_000)
    ops = record(power, seed, steps)
    cuts = cuts_after_creation(ops, wanted, seed)
    bad = wrong_states(ops, cuts, scratch, seed, steps)
    print(f"{len(cuts)} crash states of {len(ops)} operations")
    assert not bad, f"{len(bad)} of {len(cuts)}: {bad[:3]}"
    assert len(cuts) > 0.9 * wanted


@pytest.mark.parametrize("mode", [*UNSAFE, "unnamed", "hasty"])
def test_crash_states_of_an_unsafe_store_are_caught(
    power: PowerMount, scratch: Path, seed: int, mode: str
) -> None:
    steps = 100
    ops = record(power, seed, steps, mode)
    cuts = cuts_after_creation(ops, 600, seed)
    caught = any(wrong_states(ops, cuts[n::6], scratch, seed, steps) for n in range(6))
    assert caught, f"{mode}: {len(cuts)} states, and the harness cannot see a loss"


class Lived(NamedTuple):
    """A series of live cuts: the greatest number that was promised, what was wrong after a cut, and
    how writers ended that did not end as they should when their disk goes.
    """

    reached: int
    wrong: str
    ends: list[str]


def live_cuts(power: PowerMount, seed: int, cycles: int, mode: str) -> Lived:
    rng, made, ends = random.Random(seed), {"main": ledger.Reached()}, []
    Vault.create(power.path).close()
    with Child("tests.faults.ledger:lost_checker") as child:
        for cycle in range(cycles):
            power.arm(rng.randrange(1, 300))
            ended = run("ledger", power.path, "main", 1000, power.path, mode)
            if not ends_as_it_should(ended):
                ends.append(f"cycle {cycle}: {ended.returncode} {ended.stderr}")
            ops = power.cut(rng.getrandbits(32))
            made = ledger.promised((op.text for op in ops if isinstance(op, Mark)), made)
            outcome = child.ask((power.path, made))
            if outcome.wrong:
                return Lived(made["main"].number, f"cycle {cycle}: {outcome}", ends)
    return Lived(made["main"].number, "", ends)


def ends_as_it_should(ended: subprocess.CompletedProcess[str]) -> bool:
    """A writer whose disk goes says so in one line; or a page of the file is not there for it."""
    if ended.returncode == -signal.SIGBUS:
        return True
    lines = ended.stderr.splitlines()
    return ended.returncode == IOFailed.exit_code and len(lines) == 1


def test_live_power_cuts(power: PowerMount, seed: int, nightly: bool) -> None:
    cycles = 600 if nightly else 60
    reached, wrong, ends = live_cuts(power, seed, cycles, "safe")
    print(f"{cycles} power cuts, {reached} numbers")
    assert not wrong
    assert not ends, f"{len(ends)} of {cycles}: {ends[:3]}"
    assert reached > cycles


@pytest.mark.parametrize("mode", UNSAFE)
def test_live_power_cuts_of_an_unsafe_store_are_caught(
    power: PowerMount, seed: int, mode: str
) -> None:
    reached, wrong, _ = live_cuts(power, seed, 30, mode)
    assert wrong, f"{mode}: {reached} numbers, and the harness cannot see a loss"
