"""Compacting a vault and losing power: after it there is the old data file or the new one, whole,
and the vault opens with it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.store import compaction, filesystem, shared
from tests.faults import ledger
from tools.faults.children import Children, Outcome
from tools.faults.crash import enumerate_cuts
from tools.faults.disk import Mark, Op
from tools.faults.mount import PowerMount

HOME = ".blockvault"
BEFORE, AFTER = 40, 3


def compacted(power: PowerMount, unsynced: str = "") -> list[Op]:
    """The trace of a compaction between flushes that are promised.

    What the head file says of those before it has reached the disk meanwhile.
    """
    Vault.create(power.path).close()
    ledger.write(power.path, "main", BEFORE, power.mark)
    filesystem.sync_path(power.path / HOME / shared.HEAD)
    fsync = os.fsync

    def forgetful(fd: int) -> None:
        if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) != unsynced:
            fsync(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", forgetful)
        compaction.compact(power.path / HOME)
    ledger.write(power.path, "main", AFTER, power.mark)
    return power.trace()


def losses(ops: list[Op], wanted: int, seed: int, scratch: Path) -> tuple[int, list[Outcome]]:
    start = [n for n, op in enumerate(ops) if isinstance(op, Mark)][BEFORE - 1]
    cuts = enumerate_cuts(ops, wanted, seed, start)
    outcomes = Children("tests.faults.ledger:cut_checker", ops, scratch / "lanes").run(cuts)
    return len(outcomes), [o for o in outcomes if o.wrong]


def test_a_compaction_cut_off_anywhere(
    power: PowerMount, scratch: Path, seed: int, nightly: bool
) -> None:
    wanted = 1_000 if nightly else 200
    ops = compacted(power)
    count, bad = losses(ops, wanted, seed, scratch)
    print(f"{count} crash states of {len(ops)} operations")
    assert not bad, f"{len(bad)} of {count}: {bad[:3]}"
    assert count > 0.7 * wanted


@pytest.mark.parametrize("unsynced", [HOME, shared.HEAD])
def test_a_compaction_that_does_not_sync_is_caught(
    power: PowerMount, scratch: Path, seed: int, unsynced: str
) -> None:
    """Neither the name of the new file, nor that the head file was emptied."""
    count, bad = losses(compacted(power, unsynced), 200, seed, scratch)
    assert bad, f"{unsynced}: {count} states, and the harness cannot see a loss"
