"""Figures against a count of all blocks of all states."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.model.retention import Policy
from blockvault.model.snapshot import Snapshot
from blockvault.ops import forget, gc, policy, prune, snapshots, stats
from tests.oracle import BLOCK, noise

Blocks = set[tuple[str, bytes]]


def blocks(vault: Vault, rev: str) -> list[bytes]:
    """The blocks of a state that are not zero."""
    found = []
    for volume in vault.resolve(rev).volumes:
        data = vault.open_volume(rev, volume.name).read()
        found += [data[at : at + BLOCK].ljust(BLOCK, b"\0") for at in range(0, len(data), BLOCK)]
    return [block for block in found if any(block)]


def test_figures_of_a_history(tmp_path: Path) -> None:
    with Vault.create(tmp_path) as vault:
        with vault.session() as session:
            head = session.create_volume("v", 500 * BLOCK)
            for step in range(4):
                head.write(step * 30 * BLOCK, noise(step, 45 * BLOCK))
                head.zero(step * 7 * BLOCK, 3 * BLOCK)
                session.snapshot(str(step))
            session.create_volume("w", 9 * BLOCK).write(5, noise(0, 2 * BLOCK))
            head.write(400 * BLOCK, noise("head", BLOCK))
            session.flush()
        vault.create_branch("same", "main~1")
        found = stats.collect(vault)
        names = [made.id.hex() for made in vault.log("main")]
        states = {rev: blocks(vault, rev) for rev in [*names, "main"]}
        every = [block for state in states.values() for block in state]
        assert found.logical == 4 * 500 * BLOCK + 509 * BLOCK
        assert found.referenced == len(every) * BLOCK
        assert found.unique == len(set(every)) * BLOCK
        usages = {use.name: use for use in [*found.branches, *found.snapshots]}
        for rev, state in states.items():
            # A branch that stands on a snapshot holds it as well: without either the other stays.
            others = {block for other, held in states.items() if other != rev for block in held}
            others |= set(blocks(vault, "same"))
            use = next(use for name, use in usages.items() if rev.startswith(name))
            assert use.own == len(set(state) - others) * BLOCK, rev
        assert usages["same"].own == 0
        assert 0 < found.stored <= found.file_bytes
        assert found.ratio == found.referenced / found.file_bytes
        assert found.dedup == found.referenced / found.unique
        assert found.compression == found.unique / found.stored
        assert sum(count for _, count in found.growth) == found.unique


def test_growth_goes_by_the_day_of_the_first_snapshot_that_holds_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noon, day = 1_700_050_000_000_000, 86_400_000_000
    now = noon
    monkeypatch.setattr("blockvault.model.events.now_us", lambda: now)
    with Vault.create(tmp_path) as vault:
        with vault.session() as session:
            head = session.create_volume("v", 100 * BLOCK)
            for step, count in enumerate((5, 0, 3, 2)):
                now = noon + step * day
                head.write(0, noise(1, 5 * BLOCK))
                head.write((10 + step * 10) * BLOCK, noise(step + 2, count * BLOCK))
                session.snapshot(str(step))
        grown = [count // BLOCK for _, count in stats.collect(vault).growth]
    assert grown == [10, 3, 2]


def test_what_is_pruned_meanwhile_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Vault.create(tmp_path) as vault:
        with vault.session() as session:
            head = session.create_volume("v", 100 * BLOCK)
            for step in range(3):
                head.write(0, noise(step, 5 * BLOCK))
                session.snapshot(str(step))
        load, done = snapshots.load, []

        def loads(vault: Vault, oid: bytes) -> Snapshot:
            if not done:
                done.append(forget.execute(vault, prune.plan(vault, Policy(last=1, events=0))))
                gc.collect(vault, wait=0)
            return load(vault, oid)

        plan = prune.plan(vault, Policy(last=1, events=0))
        monkeypatch.setattr(prune, "plan", lambda *_: plan)
        monkeypatch.setattr(snapshots, "load", loads)
        (only,) = stats.collect(vault).snapshots
    assert only.logical == 100 * BLOCK
    assert len(done[0].snapshots) == 2


def test_what_a_prune_would_free_and_what_a_collection_could_already(tmp_path: Path) -> None:
    with Vault.create(tmp_path) as vault:
        with vault.session() as session:
            head = session.create_volume("v", 1000 * BLOCK)
            for step in range(2):
                head.write(0, noise(step, 300 * BLOCK))
                session.snapshot(str(step))
        assert stats.freeable(vault) == (0, 0)
        policy.set_policy(vault, None, Policy(last=1, events=0))
        first = stats.freeable(vault)
        assert 300 * BLOCK <= first.prune < 330 * BLOCK
        assert first.gc == 0
        forget.execute(vault, prune.plan(vault))
        assert stats.freeable(vault).prune == 0
        assert 300 * BLOCK <= stats.freeable(vault).gc < 340 * BLOCK
        gc.collect(vault)
        assert stats.freeable(vault).gc < 10 * BLOCK
