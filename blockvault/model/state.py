"""The fold: one log record after another onto the projection tables.

The tables follow from the log alone: folding it again from the start gives the same bytes, because
every row is a function of the records before it.  A prune's event holds the tables that it
leaves, so that a replay may begin there.  The log was checked when it was written; a
record that contradicts the tables (``Damaged``) means that one of the two was altered.

Only *content* events (data events and waypoints) move a branch on: renaming it or switching to it
leaves ``last_seq`` and the trail alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from blockvault.encoding import pack
from blockvault.model import events
from blockvault.model.fields import BASE_TABLES
from blockvault.model.projected import BranchRow
from blockvault.model.projections import (
    BRANCHES,
    DELETED,
    HEAD,
    HEADS,
    HOLDS,
    POLICIES,
    REFS,
    SNAPSHOTS,
    TAGS,
    TRAIL,
    WAYPOINTS,
    Tables,
    get_branch,
    has_branch,
    key,
    numbers,
    waypoints,
)
from blockvault.model.rows import Row


class WritableTables(Tables, Protocol):
    """What the fold writes to: any store's ``Writer``."""

    def put(self, table: str, key: bytes, value: bytes) -> None: ...
    def delete(self, table: str, key: bytes) -> object: ...


def apply_record(tables: WritableTables, first_seq: int, time_us: int, rows: Sequence[Row]) -> None:
    """Fold one record: ``rows`` as ``unpack_rows`` gives them or a session builds them."""
    fold = _Fold(tables, first_seq, time_us)
    for seq, row in enumerate(rows, first_seq):
        if row[0] not in events.DATA_CODES:
            _STEPS[row[0]](fold, seq, row)
    fold.finish(_moves(first_seq, rows))


def trail_rows(
    tables: Tables, first_seq: int, time_us: int, rows: Sequence[Row]
) -> Iterator[tuple[bytes, bytes]]:
    """The rows that a record before a base has in the trail, for a replay that begins there."""
    for branch, at in _moves(first_seq, rows).items():
        if has_branch(tables, branch):
            yield key(branch, first_seq), pack((at.last_seq, at.barrier_seq, time_us))


class _Moved:
    """Where a record leaves a branch; 0 for a point that is not in it."""

    __slots__ = ("barrier_seq", "last_seq")

    def __init__(self) -> None:
        self.last_seq = self.barrier_seq = 0


def _moves(first_seq: int, rows: Sequence[Row]) -> dict[int, _Moved]:
    """Each branch that a record moves on, in the order in which it first does."""
    moved: dict[int, _Moved] = {}
    for seq, row in enumerate(rows, first_seq):
        code = row[0]
        if code in events.CONTENT_CODES:
            branch = seq if code == events.BRANCH_CREATED else row[2]
            at = moved.get(branch)
            if at is None:
                at = moved[branch] = _Moved()
            at.last_seq = seq
            if code in events.POINT_CODES:
                at.barrier_seq = seq
    return moved


class _Fold:
    """One record.  Branch rows are kept until the end, for a record may hold many data events."""

    def __init__(self, tables: WritableTables, first_seq: int, time_us: int) -> None:
        self.tables = tables
        self.first_seq, self.time_us = first_seq, time_us
        self.rows: dict[int, BranchRow] = {}

    def finish(self, moved: Mapping[int, _Moved]) -> None:
        for branch, at in moved.items():
            self.update(
                branch,
                last_seq=at.last_seq,
                barrier_seq=at.barrier_seq or self.branch(branch).barrier_seq,
            )
            trail = (at.last_seq, at.barrier_seq, self.time_us)
            self.tables.put(TRAIL, key(branch, self.first_seq), pack(trail))
        for branch, row in self.rows.items():
            self.tables.put(BRANCHES, key(branch), pack(row))

    def branch(self, branch: int) -> BranchRow:
        row = self.rows.get(branch)
        return get_branch(self.tables, branch) if row is None else row

    def update(self, branch: int, **changes: Any) -> None:
        self.rows[branch] = self.branch(branch)._replace(**changes)

    # names

    def nothing(self, seq: int, row: Row) -> None:
        """The vault's own parameters are kept by the store."""

    def renamed(self, seq: int, row: Row) -> None:
        _, _, branch, name = row
        self._drop_name(self.branch(branch).name)
        self._name(branch, name)
        self.update(branch, name=name)

    def deleted(self, seq: int, row: Row) -> None:
        self._drop_name(self.branch(row[2]).name)
        self.update(row[2], deleted=True)
        self.tables.put(REFS, DELETED + key(row[2]), pack([seq, self.time_us + row[1]]))

    def restored(self, seq: int, row: Row) -> None:
        _, _, branch, name = row
        self._name(branch, name)
        self.update(branch, name=name, deleted=False)
        self.tables.delete(REFS, DELETED + key(branch))

    def switched(self, seq: int, row: Row) -> None:
        self.branch(row[2])
        self.tables.put(REFS, HEAD, pack([row[2]]))

    def tagged(self, seq: int, row: Row) -> None:
        _, _, name, snapshot = row
        self.tables.put(REFS, TAGS + name.encode(), pack([snapshot, seq]))
        self._recorded(snapshot, seq, 0)

    def untagged(self, seq: int, row: Row) -> None:
        self.tables.delete(REFS, TAGS + row[2].encode())

    def _name(self, branch: int, name: str) -> None:
        self.tables.put(REFS, HEADS + name.encode(), pack([branch]))

    def _drop_name(self, name: str) -> None:
        self.tables.delete(REFS, HEADS + name.encode())

    # keeping and forgetting

    def held(self, seq: int, row: Row) -> None:
        _, _, snapshot, text = row
        self.tables.put(REFS, HOLDS + snapshot, pack([seq, self.time_us + row[1], text]))
        self._recorded(snapshot, seq, 0)

    def unheld(self, seq: int, row: Row) -> None:
        self.tables.delete(REFS, HOLDS + row[2])

    def policy_set(self, seq: int, row: Row) -> None:
        _, _, branch, rules = row
        if rules:
            self.tables.put(REFS, POLICIES + key(branch), pack(rules))
        else:
            self.tables.delete(REFS, POLICIES + key(branch))

    def pruned(self, seq: int, row: Row) -> None:
        """Make the tables what the base says, and the trail what the kept records say."""
        _, _, kept, base = row
        self._forget_trail(kept, {found for table, found, _ in base if table == BRANCHES})
        wanted: dict[str, dict[bytes, bytes]] = {table: {} for table in BASE_TABLES}
        for table, found, value in base:
            wanted[table][found] = value
        for table, rows in wanted.items():
            for found, value in self.tables.scan(table):
                if rows.get(found) == value:
                    del rows[found]
                elif found not in rows:
                    self.tables.delete(table, found)
            for found, value in rows.items():
                self.tables.put(table, found, value)

    def _forget_trail(self, kept: Sequence[tuple[int, int, bytes]], branches: set[bytes]) -> None:
        starts = [first for first, _, _ in kept]
        # The last run mostly reaches up to here, then only what is before it has to be looked at.
        last = starts[-1] if kept and kept[-1][1] == self.first_seq else self.first_seq
        for branch, _ in self.tables.scan(BRANCHES):
            stop = branch + key(last) if branch in branches else key(numbers(branch)[0] + 1)
            for found, _ in self.tables.scan(TRAIL, branch, stop):
                at = numbers(found)[1]
                run = bisect_right(starts, at) - 1
                if branch not in branches or run < 0 or at >= kept[run][1]:
                    self.tables.delete(TRAIL, found)

    # waypoints

    def created(self, seq: int, row: Row) -> None:
        _, _, name, source, source_seq, snapshot, volumes = row
        self._name(seq, name)
        self.rows[seq] = BranchRow(name, source, source_seq, False, seq, seq, None, 0, seq)
        tip = snapshot or self._tip_at(source, source_seq)
        self._waypoint(seq, seq, row, (snapshot, tip, volumes, source, source_seq))

    def checkpointed(self, seq: int, row: Row) -> None:
        _, _, branch, volumes = row
        self._waypoint(branch, seq, row, (None, self.branch(branch).tip, volumes))

    def imported(self, seq: int, row: Row) -> None:
        _, _, branch, volumes, snapshot, source = row
        self._waypoint(branch, seq, row, (snapshot, snapshot, volumes, source))

    def snapshotted(self, seq: int, row: Row) -> None:
        _, _, branch, volumes, snapshot = row
        self._waypoint(branch, seq, row, (snapshot, snapshot, volumes))

    def rolled_back(self, seq: int, row: Row) -> None:
        _, _, branch, volumes, snapshot, target, target_seq = row
        tip = snapshot or self._tip_at(target, target_seq)
        self._waypoint(branch, seq, row, (snapshot, tip, volumes, target, target_seq))

    def volume_changed(self, seq: int, row: Row) -> None:
        _, _, branch, volumes, action, volume = row
        self._waypoint(branch, seq, row, (None, self.branch(branch).tip, volumes, action, volume))

    def _waypoint(self, branch: int, seq: int, row: Row, what: tuple[Any, ...]) -> None:
        """Record a waypoint; ``what`` is (snapshot, tip, volumes, detail...)."""
        snapshot, tip = what[0], what[1]
        value = (row[0], self.time_us + row[1], *what)
        self.tables.put(WAYPOINTS, key(branch, seq), pack(value))
        if snapshot is not None:
            self._recorded(snapshot, seq, branch)
        before = self.branch(branch)
        set_now = snapshot is not None or tip != before.tip or row[0] == events.ROLLED_BACK
        tip_seq = (seq if set_now else before.tip_seq) if tip is not None else 0
        self.update(branch, waypoint_seq=seq, tip=tip, tip_seq=tip_seq)

    def _recorded(self, snapshot: bytes, seq: int, branch: int) -> None:
        """The first event that names a snapshot is where it is found; a tag's has no branch."""
        if self.tables.get(SNAPSHOTS, snapshot) is None:
            self.tables.put(SNAPSHOTS, snapshot, pack([seq, branch]))

    def _tip_at(self, branch: int, seq: int) -> bytes | None:
        """The newest snapshot in the line of ``branch`` as it was after event ``seq``."""
        if branch == 0:
            return None
        found = next(waypoints(self.tables, branch, seq), None)
        return None if found is None else found[1].tip


_STEPS: Final[dict[int, Callable[[_Fold, int, Row], None]]] = {
    events.INIT: _Fold.nothing,
    events.BRANCH_CREATED: _Fold.created,
    events.BRANCH_RENAMED: _Fold.renamed,
    events.BRANCH_DELETED: _Fold.deleted,
    events.BRANCH_RESTORED: _Fold.restored,
    events.SWITCHED: _Fold.switched,
    events.TAGGED: _Fold.tagged,
    events.UNTAGGED: _Fold.untagged,
    events.HELD: _Fold.held,
    events.UNHELD: _Fold.unheld,
    events.POLICY_SET: _Fold.policy_set,
    events.PRUNED: _Fold.pruned,
    events.CHECKPOINTED: _Fold.checkpointed,
    events.IMPORTED: _Fold.imported,
    events.SNAPSHOTTED: _Fold.snapshotted,
    events.ROLLED_BACK: _Fold.rolled_back,
    events.VOLUME_CHANGED: _Fold.volume_changed,
}
