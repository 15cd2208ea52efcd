"""Repairing a meta page and losing power: it is mended or can be, and what was there is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.store import filesystem, salvage, shared
from tests.faults import command_case
from tools.faults.children import Children, Outcome
from tools.faults.crash import enumerate_cuts
from tools.faults.disk import Mark
from tools.faults.mount import PowerMount

PAGE = 4096


def wrong_rescues(power: PowerMount, scratch: Path, seed: int) -> tuple[int, list[Outcome]]:
    """How many crash states a rescue has, and those that are wrong."""
    with Vault.create(power.path) as vault, vault.session() as session:
        session.create_volume("vda", 8 * PAGE).write(0, b"something" * 1000)
        session.snapshot("whole")
    home = power.path / ".blockvault"
    command_case.destroy_meta(home)
    with (home / shared.DATA).open("rb") as file:
        os.fsync(file.fileno())
    number = salvage.damaged_meta(home)
    assert number is not None
    before = (home / shared.DATA).read_bytes()[number * PAGE :][:PAGE]
    power.mark("destroyed")
    assert salvage.rescue_meta(home)
    power.mark("rescued")
    ops = power.trace()
    start = next(n for n, op in enumerate(ops) if isinstance(op, Mark))
    cuts = enumerate_cuts(ops, 200, seed, start)
    checker = "tests.faults.crash_case:rescue_checker"
    outcomes = Children(checker, ops, scratch / "lanes", number, before).run(cuts)
    return len(cuts), [o for o in outcomes if o.wrong]


def test_a_rescue_cut_off_anywhere(power: PowerMount, scratch: Path, seed: int) -> None:
    count, bad = wrong_rescues(power, scratch, seed)
    print(f"{count} crash states")
    assert not bad, f"{len(bad)} of {count}: {bad[:3]}"
    assert count > 20


def test_a_rescue_that_syncs_no_names_is_caught(
    power: PowerMount, scratch: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "sync_path", lambda path: None)
    count, bad = wrong_rescues(power, scratch, seed)
    assert bad, f"{count} states, and the harness cannot see what was not kept"
