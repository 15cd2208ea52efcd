"""Power failures: nothing that was acknowledged is lost, whatever the disk kept.

Enumerated: a story runs on a file system that records every write and sync; the states that a power
cut may leave are derived from that trace, and each is opened, verified, compared and written to.
Live: the power fails at random moments under a counting writer, which then goes on with what the
disk kept, dozens of times over.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from blockvault import Vault
from tests.faults import ledger
from tools.faults.channel import REPOSITORY
from tools.faults.children import Child, Children, Outcome
from tools.faults.crash import enumerate_cuts
from tools.faults.disk import Mark, Op
from tools.faults.mount import PowerMount

UNSAFE = ["no-sync", "no-metasync", "eager"]


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"tests.faults.{module}", *map(str, arguments)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def record(power: PowerMount, seed: int, steps: int, mode: str = "safe") -> list[Op]:
    done = run("story", power.path, seed, steps, power.path, mode)
    assert done.returncode == 0, done.stderr
    return power.trace()


def wrong_states(
    ops: list[Op], wanted: int, scratch: Path, seed: int, steps: int
) -> tuple[int, list[Outcome]]:
    start = next(n for n, op in enumerate(ops) if isinstance(op, Mark))  # after the creation
    cuts = enumerate_cuts(ops, wanted, seed, start)
    checker = "tests.faults.crash_case:state_checker"
    outcomes = Children(checker, ops, scratch / "lanes", seed, steps).run(cuts)
    return len(outcomes), [o for o in outcomes if o.value or not o.returned]


def test_crash_states_of_a_story(
    power: PowerMount, scratch: Path, seed: int, nightly: bool
) -> None:
    steps, wanted = (400, 30_000) if nightly else (70, 4_000)
    ops = record(power, seed, steps)
    count, bad = wrong_states(ops, wanted, scratch, seed, steps)
    print(f"{count} crash states of {len(ops)} operations")
    assert not bad, f"{len(bad)} of {count}: {bad[:3]}"
    assert count > 0.9 * wanted


@pytest.mark.parametrize("mode", UNSAFE)
def test_crash_states_of_an_unsafe_store_are_caught(
    power: PowerMount, scratch: Path, seed: int, mode: str
) -> None:
    count, bad = wrong_states(record(power, seed, 40, mode), 300, scratch, seed, 40)
    assert bad, f"{mode}: {count} states, and the harness cannot see a loss"


def live_cuts(power: PowerMount, seed: int, cycles: int, mode: str) -> tuple[int, str]:
    """The greatest number that was promised, and what was wrong after a cut, if anything."""
    rng, made = random.Random(seed), {"main": ledger.Reached()}
    Vault.create(power.path).close()
    with Child("tests.faults.ledger:lost_checker") as child:
        for cycle in range(cycles):
            power.arm(rng.randrange(1, 300))
            run("ledger", power.path, "main", 1000, power.path, mode)
            ops = power.cut(rng.getrandbits(32))
            made = ledger.promised((op.text for op in ops if isinstance(op, Mark)), made)
            outcome = child.ask((power.path, made))
            if outcome.value or not outcome.returned:
                return made["main"].number, f"cycle {cycle}: {outcome}"
    return made["main"].number, ""


def test_live_power_cuts(power: PowerMount, seed: int, nightly: bool) -> None:
    cycles = 600 if nightly else 60
    reached, wrong = live_cuts(power, seed, cycles, "safe")
    print(f"{cycles} power cuts, {reached} numbers")
    assert not wrong
    assert reached > cycles


@pytest.mark.parametrize("mode", UNSAFE)
def test_live_power_cuts_of_an_unsafe_store_are_caught(
    power: PowerMount, seed: int, mode: str
) -> None:
    reached, wrong = live_cuts(power, seed, 30, mode)
    assert wrong, f"{mode}: {reached} numbers, and the harness cannot see a loss"
