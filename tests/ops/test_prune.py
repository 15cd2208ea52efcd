"""Pruning a history that is long: every step of it takes time in proportion to its length."""

from __future__ import annotations

from blockvault.ids import short
from blockvault.model import events
from blockvault.model.retention import Policy
from blockvault.model.snapshot import Snapshot
from blockvault.ops import check, forget, gc, prune, rebuild
from blockvault.vault import Vault


def add_line(vault: Vault, count: int) -> list[bytes]:
    """Snapshots that follow each other on the current branch, recorded in one commit."""
    made: list[bytes] = []
    branch = vault.branch()
    with vault.guard(), vault.transaction() as transaction:
        objects = vault.new_objects()
        for number in range(count):
            snapshot = Snapshot(
                parents=tuple(made[-1:]),
                volumes=(),
                message=f"{number}",
                time_us=transaction.time_us,
                seq=branch.seq + number,
            )
            objects.add_node(snapshot.encode())
            transaction.add(events.Snapshotted(branch=branch.id, volumes=(), snapshot=snapshot.id))
            made.append(snapshot.id)
        transaction.add_frames(objects.finish())
    return made


def test_a_long_line_is_forgotten(vault: Vault) -> None:
    """There are more snapshots in a row than calls can be nested."""
    made = add_line(vault, 1500)
    vault.tag("first", made[0].hex())
    done = forget.execute(vault, prune.plan(vault, Policy(last=3, events=0)))
    assert set(done.snapshots) == set(made[1:-3])
    gc.collect(vault)
    assert [snapshot.id for snapshot in vault.log()] == [*made[:-4:-1], made[0]]
    assert not check.verify(vault).problems
    assert rebuild.rebuild(vault).changed_rows == 0


def test_what_stood_on_a_snapshot_that_goes(vault: Vault) -> None:
    made = add_line(vault, 5)
    vault.tag("kept", made[3].hex())
    vault.create_branch("b", made[2].hex())
    with vault.session("b") as session:
        session.create_volume("v", 10)
        tip = session.snapshot().id
    plan = prune.plan(vault, Policy(last=1, events=0))
    found = {each.snapshot.id: set(each.dependents) for each in plan.verdicts if not each.kept}
    stand_on_it = {"branch b", f"snapshot {short(made[3])}", f"snapshot {short(tip)}"}
    assert found == {made[0]: set(), made[1]: set(), made[2]: stand_on_it}
