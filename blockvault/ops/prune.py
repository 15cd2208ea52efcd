"""prune: forget what the policies do not keep; ``gc`` then gives the space back.

    plan      what stays and why, what goes and what stood on it, from where each branch is complete
    execute   one event that holds the tables as they are afterwards

A branch is *cut* at its last waypoint before the window of ``events``: from there on every write
stays reachable, before it only the snapshots that are kept.  So the newest waypoint always stays,
and with it all that a session of the branch works on.

Snapshots are chosen line by line: a line is what was recorded on a branch and all that its head
descends from.  One that several lines share stays if any of them wants it.  A tag keeps a snapshot
if the policy of any of its lines says so; for what is on no line, such as a moment that the tag
froze, that of the vault.  What stays without attachments keeps the snapshot that it inherits them
from: a machine's configuration.  A deleted branch stays whole as long as its deletion is younger
than the window; then it goes whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from blockvault.ids import short
from blockvault.model import events, projections, retention
from blockvault.model.projected import BranchRow
from blockvault.model.retention import Candidate, Policy
from blockvault.model.snapshot import Snapshot
from blockvault.ops import attachments, snapshots
from blockvault.ops import policy as policies

if TYPE_CHECKING:
    from blockvault.store.types import Reader
    from blockvault.vault import Vault


class Verdict(NamedTuple):
    """One snapshot: why it stays, or if nothing keeps it, what stands on it."""

    snapshot: Snapshot
    reasons: tuple[str, ...]
    dependents: tuple[str, ...]

    @property
    def kept(self) -> bool:
        return bool(self.reasons)


class Cut(NamedTuple):
    """A branch will be complete from event ``seq`` on."""

    branch: int
    name: str
    seq: int
    time_us: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A prune that can be shown before it is done; ``seq`` is the last event that it knows of."""

    seq: int
    verdicts: tuple[Verdict, ...]
    cuts: tuple[Cut, ...]
    dropped: tuple[tuple[int, str], ...]
    tags: tuple[str, ...]
    now_us: int
    window_us: int

    @property
    def forgotten(self) -> frozenset[bytes]:
        return frozenset(each.snapshot.id for each in self.verdicts if not each.kept)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to forget."""
        return not (self.forgotten or self.cuts or self.dropped)


def plan(vault: Vault, policy: Policy | None = None, branch: str | None = None) -> Plan:
    """What a prune would do, by stored policies or by ``policy``; for one branch or for all.

    Branches that are not asked for, or have no policy, keep everything.
    """
    only = None if branch is None else vault.branch(branch).id
    with vault.guard(), vault.read() as reader:
        return _Planner(vault, reader, policy, only).run()


class _Planner:
    """One look at all branches and snapshots."""

    def __init__(
        self, vault: Vault, reader: Reader, override: Policy | None, only: int | None
    ) -> None:
        self.reader = reader
        self.override = override
        self.only = only
        self.now_us = min(reader.last().time_us, events.now_us())
        self.branches = dict(projections.branches(reader))
        self.rows = dict(projections.snapshots(reader))
        self.snapshots = {oid: snapshots.load(vault, oid) for oid in self.rows}
        self.tags = dict(projections.tags(reader))
        self.reasons: dict[bytes, dict[str, None]] = {oid: {} for oid in self.rows}
        self.on_lines: set[bytes] = set()
        self.policies = {number: self._policy(number) for number in self.branches}
        # What is on no line is no part of any one branch.
        self.general = (override or policies.stored(reader, 0)) if only is None else None

    def run(self) -> Plan:
        dropped = {number for number, row in self.branches.items() if self._drops(number, row)}
        living = {n: row for n, row in self.branches.items() if n not in dropped}
        cuts = [cut for number, row in living.items() if (cut := self._cut(number, row))]
        starts = {cut.branch: cut.seq for cut in cuts}
        for number, row in living.items():
            self._line(number, row, starts.get(number))
        self._strays()
        for oid, hold in projections.holds(self.reader):
            self._keep([oid], f"held: {hold.text}" if hold.text else "held")
        self._files()
        verdicts = sorted(map(self._verdict, self.rows), key=lambda v: -v.snapshot.time_us)
        gone = {each.snapshot.id for each in verdicts if not each.kept}
        return Plan(
            self.reader.last().seq,
            tuple(verdicts),
            tuple(cuts),
            tuple((number, self.branches[number].name) for number in sorted(dropped)),
            tuple(name for name, tag in self.tags.items() if tag.snapshot in gone),
            self.now_us,
            max((policy.events for policy in self.policies.values() if policy), default=0),
        )

    def _policy(self, branch: int) -> Policy | None:
        if self.only not in (None, branch):
            return None
        return self.override or policies.effective(self.reader, branch)

    def _drops(self, number: int, row: BranchRow) -> bool:
        policy, deleted = self.policies[number], projections.deleted_at(self.reader, number)
        if not row.deleted or policy is None or deleted is None:
            return False
        return deleted.time_us <= self.now_us - policy.events

    def _cut(self, number: int, row: BranchRow) -> Cut | None:
        """The last waypoint before the window, unless the branch is cut there already."""
        policy = self.policies[number]
        if policy is None or row.deleted:
            return None
        limit = self.now_us - policy.events
        before = projections.cut(self.reader, number)
        for seq, waypoint in projections.waypoints(self.reader, number):
            if before and seq <= before.seq:
                return None
            if waypoint.time_us <= limit:
                first = next(projections.waypoints(self.reader, number, reverse=False))[0]
                return Cut(number, row.name, seq, waypoint.time_us) if seq > first else None
        return None

    def _line(self, number: int, row: BranchRow, start: int | None) -> None:
        """Give the snapshots of one branch the reasons that its policy has for them."""
        before = projections.cut(self.reader, number)
        since = start or (before.seq if before else 0)
        tips = {row.tip: f"newest of {row.name}"} if row.tip else {}
        recent = []
        for seq, waypoint in projections.waypoints(self.reader, number):
            if seq < since:
                break
            recent += [waypoint.snapshot] if waypoint.snapshot else []
        line = self._ancestors([*tips, *recent])
        line |= {oid for oid, where in self.rows.items() if where.branch == number}
        self.on_lines |= line
        policy = self.policies[number]
        self._tagged(line, policy)
        if policy is None or row.deleted:
            why = f"deleted {row.name} can be restored" if row.deleted else f"{row.name} keeps all"
            self._keep(line, why)
            return
        self._keep(tips, f"newest of {row.name}")
        self._keep(recent, f"{row.name} events within {retention.format_duration(policy.events)}")
        found = retention.kept(policy, [self._candidate(oid) for oid in line], self.now_us)
        for oid, names in found.items():
            for name in names:
                self._keep([oid], f"{row.name} {name}")

    def _strays(self) -> None:
        """What no line has: snapshots of tags and holds that are gone, and of dropped branches."""
        strays = self.rows.keys() - self.on_lines
        limit = self.now_us - self.general.events if self.general else 0
        recent = (oid for oid in strays if self.snapshots[oid].time_us > limit)
        self._keep(recent, "recent" if self.general else "not asked for")
        self._tagged(strays, self.general)

    def _files(self) -> None:
        """Keep what snapshots of disks alone inherit from: it says what the machine is."""
        inherited: dict[bytes, dict[str, bytes]] = {}
        for start in self.rows:
            waiting = [start]
            while waiting:
                snapshot = self.snapshots[waiting[-1]]
                before = [each for each in snapshot.parents if each not in inherited]
                if before:
                    waiting += before
                    continue
                waiting.pop()
                known = [inherited[each] for each in snapshot.parents]
                inherited[snapshot.id] = attachments.by_name(snapshot, known)
        for oid in [oid for oid in self.rows if self.reasons[oid]]:
            self._keep(set(inherited[oid].values()) - {oid}, f"files of {short(oid)}")

    def _tagged(self, line: set[bytes], policy: Policy | None) -> None:
        """Keep what of a line has a tag that its policy keeps."""
        for name, tag in self.tags.items():
            if tag.snapshot in line and (policy is None or policy.keeps_tag(name)):
                self._keep([tag.snapshot], f"tag {name}")

    def _keep(self, ids: Iterable[bytes], reason: str) -> None:
        for oid in ids:
            if oid in self.reasons:
                self.reasons[oid][reason] = None

    def _candidate(self, oid: bytes) -> Candidate:
        found = self.snapshots[oid]
        return Candidate(oid, found.time_us, found.seq)

    def _ancestors(self, starts: Iterable[bytes]) -> set[bytes]:
        found: set[bytes] = set()
        waiting = [oid for oid in starts if oid in self.snapshots]
        while waiting:
            oid = waiting.pop()
            if oid not in found:
                found.add(oid)
                waiting += self.snapshots[oid].parents
        return found

    def _verdict(self, oid: bytes) -> Verdict:
        reasons = tuple(self.reasons[oid])
        return Verdict(self.snapshots[oid], reasons, () if reasons else self._dependents(oid))

    def _dependents(self, oid: bytes) -> tuple[str, ...]:
        """What came out of a snapshot and goes on without it."""
        where = self.rows[oid]
        born = self._born.get((where.branch, where.seq), ())
        children = (child for child in self._children.get(oid, ()) if self.reasons[child])
        return (
            *(f"branch {name}" for name in born),
            *(f"snapshot {short(child)}" for child in children),
        )

    @cached_property
    def _born(self) -> dict[tuple[int, int], list[str]]:
        """The branches that began at an event of another one."""
        found: dict[tuple[int, int], list[str]] = {}
        for row in self.branches.values():
            if row.source and not row.deleted:
                found.setdefault((row.source, row.source_seq), []).append(row.name)
        return found

    @cached_property
    def _children(self) -> dict[bytes, list[bytes]]:
        found: dict[bytes, list[bytes]] = {}
        for oid, snapshot in self.snapshots.items():
            for parent in snapshot.parents:
                found.setdefault(parent, []).append(oid)
        return found
