"""Creating a vault and losing power: after it there is no vault or a working one, never a wreck."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.faults.channel import REPOSITORY
from tools.faults.children import Children, Outcome
from tools.faults.crash import enumerate_cuts
from tools.faults.disk import Make, Op
from tools.faults.mount import PowerMount


def created(power: PowerMount, mode: str = "safe") -> list[Op]:
    """The trace of one creation, ended by its promise."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.crash_case", power.path, mode],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return power.trace()


def wrecks(ops: list[Op], wanted: int, seed: int, scratch: Path) -> tuple[int, list[Outcome]]:
    cuts = enumerate_cuts(ops, wanted, seed)
    checker = "tests.faults.crash_case:rebirth_checker"
    outcomes = Children(checker, ops, scratch / "lanes").run(cuts)
    return len(outcomes), [o for o in outcomes if o.wrong]


def test_a_creation_cut_off_anywhere(
    power: PowerMount, scratch: Path, seed: int, nightly: bool
) -> None:
    wanted = 1_000 if nightly else 300
    ops = created(power)
    count, bad = wrecks(ops, wanted, seed, scratch)
    print(f"{count} crash states of {len(ops)} operations")
    assert not bad, f"{len(bad)} of {count}: {bad[:3]}"
    assert count > 0.7 * wanted
    assert sum(isinstance(op, Make) for op in ops) >= 3


def test_a_creation_that_syncs_no_names_is_caught(
    power: PowerMount, scratch: Path, seed: int
) -> None:
    count, bad = wrecks(created(power, "no-path-sync"), 200, seed, scratch)
    assert bad, f"{count} states, and the harness cannot see a lost vault"
