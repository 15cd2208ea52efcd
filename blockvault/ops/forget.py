"""The second half of ``prune``: one event that makes the vault forget.

Everything is decided again inside the write transaction: a snapshot that got a tag, a hold or a
branch since the plan was made stays.  The event carries all rows that the tables have afterwards,
so the records before it are needed no more, but for those with writes that are still reachable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from blockvault.encoding import pack
from blockvault.model import events, history, projections
from blockvault.model.projected import BranchRow, CutRow, GraftRow, WaypointRow
from blockvault.model.snapshot import Snapshot
from blockvault.ops import attachments, base, snapshots
from blockvault.store import tables

if TYPE_CHECKING:
    from blockvault.ops.prune import Cut, Plan
    from blockvault.store.types import Reader
    from blockvault.vault import Vault

Row = tuple[str, bytes, bytes]
Run = tuple[int, int, bytes]


class Forgotten(NamedTuple):
    """What a prune did: the event that says so, what is gone, and the branches that it cut.

    ``seq`` is 0 where there is no such event.
    """

    seq: int
    snapshots: tuple[bytes, ...]
    branches: tuple[str, ...]
    tags: tuple[str, ...]
    cuts: tuple[Cut, ...]


def expected(plan: Plan) -> Forgotten:
    """What a plan comes to if nothing changes until it is carried out; there is no event yet."""
    dropped = tuple(name for _, name in plan.dropped)
    return Forgotten(0, tuple(sorted(plan.forgotten)), dropped, plan.tags, plan.cuts)


def execute(vault: Vault, plan: Plan) -> Forgotten:
    """Carry out a plan, without what came to be needed since it was made, and what is gone by now.

    Where nothing is left to do, there is no event.
    """
    with vault.guard(), vault.transaction() as transaction:
        writer = transaction.writer
        after = _After(vault, writer, plan)
        done = after.done()
        if not (done.snapshots or done.branches or done.cuts):
            return done
        rows = tuple(after.rows())
        kept = tuple(_runs(writer, after, plan))
        seq = transaction.add(events.Pruned(kept=kept, base=rows))
        writer.put(tables.META, base.ROW, pack(seq))
        return done._replace(seq=seq)


class _After:
    """The tables as they are after the prune."""

    def __init__(self, vault: Vault, reader: Reader, plan: Plan) -> None:
        self.vault = vault
        self.reader = reader
        self.plan = plan
        branches = dict(projections.branches(reader))
        self.dropped = {n for n, _ in plan.dropped if n in branches and self._is_deleted(n)}
        self.branches = {n: row for n, row in branches.items() if n not in self.dropped}
        self.cuts = self._cuts()
        there = {oid for oid in plan.forgotten if projections.recorded(reader, oid) is not None}
        self.gone = there - self._needed()
        self._nearest = history.Nearest(self._parents, self._is_kept)

    def done(self) -> Forgotten:
        """What the prune does; there is no event yet."""
        return Forgotten(
            0,
            tuple(sorted(self.gone)),
            tuple(name for number, name in self.plan.dropped if number in self.dropped),
            tuple(name for name in self.plan.tags if self._untags(name)),
            tuple(cut for cut in self.plan.cuts if self._cuts_anew(cut)),
        )

    def _is_deleted(self, number: int) -> bool:
        """Whether a branch is deleted as it was when the plan was made, not anew."""
        deleted = projections.deleted_at(self.reader, number)
        return deleted is not None and deleted.seq <= self.plan.seq

    def _cuts(self) -> dict[int, CutRow]:
        """From where each branch is complete: where the plan says, but not before where another
        prune has cut it since; and a branch that was deleted since keeps what it has.
        """
        planned = {cut.branch: CutRow(cut.seq, cut.time_us) for cut in self.plan.cuts}
        found = {}
        for number, row in self.branches.items():
            cut = projections.cut(self.reader, number)
            ahead = planned.get(number)
            if ahead is not None and not row.deleted and (cut is None or cut.seq < ahead.seq):
                cut = ahead
            if cut is not None:
                found[number] = cut
        return found

    def _needed(self) -> set[bytes]:
        """Snapshots that have names or are states that stay, by the tables as they are now."""
        found = {oid for oid, _ in projections.holds(self.reader)}
        loose = set(self.plan.tags)
        for name, tag in projections.tags(self.reader):
            # A tag of such a name that was set since the plan was made says something else.
            if name not in loose or tag.seq > self.plan.seq:
                found.add(tag.snapshot)
        found |= {row.tip for row in self.branches.values() if row.tip}
        for number in self.branches:
            since = self.cuts[number].seq if number in self.cuts else 0
            for seq, waypoint in projections.waypoints(self.reader, number):
                if seq < since:
                    break
                if waypoint.snapshot:
                    found.add(waypoint.snapshot)
        # The plan has seen to it for what it keeps itself.
        planned = {each.snapshot.id for each in self.plan.verdicts if each.kept}
        return found.union(*map(self._files_of, found - planned))

    def _files_of(self, oid: bytes) -> set[bytes]:
        """The snapshots whose attachments this one inherits: of each name the nearest."""
        line: dict[bytes, None] = {}
        waiting = [oid]
        while waiting:
            if (each := waiting.pop()) not in line:
                line[each] = None
                waiting += snapshots.kept_parents(self.reader, self._raw(each).parents)
        found: dict[str, bytes] = {}
        for each in reversed(line):
            found = attachments.by_name(self._raw(each), [found])
        return set(found.values())

    def _untags(self, name: str) -> bool:
        tag = projections.tag_named(self.reader, name)
        return tag is not None and tag.snapshot in self.gone

    def _cuts_anew(self, cut: Cut) -> bool:
        """Whether a branch is complete from there on only, and was from elsewhere before."""
        planned = CutRow(cut.seq, cut.time_us)
        before = projections.cut(self.reader, cut.branch)
        return self.cuts.get(cut.branch) == planned and before != planned

    # -- rows -------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """Every row of the base."""
        yield from (("refs", *row) for row in self._refs())
        for number, row in self.branches.items():
            yield "branches", projections.key(number), pack(row)
        for number, row in self.branches.items():
            yield from self._waypoints(number, row)
        for oid, where in projections.snapshots(self.reader):
            if oid not in self.gone:
                lost = where.branch in self.dropped
                value = where._replace(branch=0) if lost else where
                yield "snapshots", oid, pack(value)

    def _refs(self) -> Iterator[tuple[bytes, bytes]]:
        replaced = (projections.CUTS, projections.GRAFTS)
        of_branches = (projections.DELETED, projections.POLICIES)
        lost = {prefix + projections.key(n) for prefix in of_branches for n in self.dropped}
        lost |= {projections.TAGS + name.encode() for name in self.plan.tags if self._untags(name)}
        for found, value in self.reader.scan("refs"):
            if not found.startswith(replaced) and found not in lost:
                yield found, value
        for number, cut in self.cuts.items():
            yield projections.CUTS + projections.key(number), pack(cut)
        for oid, graft in self._grafts().items():
            yield projections.GRAFTS + oid, pack(graft)

    def _waypoints(self, number: int, row: BranchRow) -> Iterator[Row]:
        since = self.cuts[number].seq if number in self.cuts else 0
        for seq, waypoint in projections.waypoints(self.reader, number, reverse=False):
            if seq >= since or self._stays(waypoint):
                mapped = waypoint._replace(tip=self._tip(waypoint.tip))
                value = (*mapped[:-1], *mapped.detail)
                yield "waypoints", projections.key(number, seq), pack(value)

    def _stays(self, waypoint: WaypointRow) -> bool:
        """Whether an old waypoint is the state of a snapshot that is kept."""
        return waypoint.snapshot is not None and self._is_kept(waypoint.snapshot)

    def _is_kept(self, oid: bytes) -> bool:
        return oid not in self.gone and projections.recorded(self.reader, oid) is not None

    # -- ancestry ---------------------------------------------------------------------------------

    def _tip(self, tip: bytes | None) -> bytes | None:
        """The newest snapshot in a line, which may have been pruned, or its nearest ancestor."""
        return next(iter(self._nearest.of(tip)), None) if tip else None

    def _parents(self, oid: bytes) -> tuple[bytes, ...]:
        if projections.recorded(self.reader, oid) is not None:
            return self._raw(oid).parents
        graft = projections.graft(self.reader, oid)
        return graft.parents if graft else ()

    def _raw(self, oid: bytes) -> Snapshot:
        return Snapshot.decode(self.vault.objects.get(oid))

    def _grafts(self) -> dict[bytes, GraftRow]:
        """What takes the place of parents that are gone."""
        found = {}
        for oid, _ in projections.snapshots(self.reader):
            if oid in self.gone:
                continue
            for parent in self._raw(oid).parents:
                if not self._is_kept(parent):
                    found[parent] = self._graft(parent)
        return found

    def _graft(self, oid: bytes) -> GraftRow:
        parents = self._nearest.of(oid)
        if projections.recorded(self.reader, oid) is None:
            graft = projections.graft(self.reader, oid)
            return GraftRow(parents, graft.seq if graft else 0, graft.time_us if graft else 0)
        return GraftRow(parents, self._raw(oid).seq, self._raw(oid).time_us)


# -- records ---------------------------------------------------------------------------------------


def _runs(reader: Reader, after: _After, plan: Plan) -> Iterator[Run]:
    """The records that stay: the first, all of the window, and older ones that a branch needs."""
    end = reader.last().seq + 1
    tail = min(end, reader.record_at(plan.now_us - plan.window_us))
    keys = {1, *_needed_records(reader, after, tail)}
    wanted = [*_spans(reader, sorted(keys)), (tail, end)]
    for start, stop in _common(_joined(wanted), _there(reader, end)):
        yield start, stop, reader.chain_before(start)


def _there(reader: Reader, end: int) -> list[tuple[int, int]]:
    """What the prune before did not forget."""
    before = base.of(reader)
    if before is None:
        return [(1, end)]
    return _joined([*((start, stop) for start, stop, _ in before.kept), (before.seq, end)])


def _joined(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending runs, merged where they touch."""
    found: list[tuple[int, int]] = []
    for start, stop in runs:
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        elif start < stop:
            found.append((start, stop))
    return found


def _common(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What lies in both of two lists of ascending runs."""
    at = 0
    for start, stop in a:
        while at < len(b) and b[at][1] <= start:
            at += 1
        here = at
        while here < len(b) and b[here][0] < stop:
            yield max(start, b[here][0]), min(stop, b[here][1])
            here += 1


def _needed_records(reader: Reader, after: _After, tail: int) -> Iterator[int]:
    """Records before ``tail`` with writes that are reachable."""
    for number in after.branches:
        since = after.cuts[number].seq if number in after.cuts else 0
        for first, row in projections.trail(reader, number, tail - 1):
            if row.last_seq < since:
                break
            yield first


def _spans(reader: Reader, keys: Iterable[int]) -> Iterator[tuple[int, int]]:
    for key in keys:
        record = reader.record(key)
        if record is not None and not record.pruned:
            yield record.first_seq, record.last_seq + 1
