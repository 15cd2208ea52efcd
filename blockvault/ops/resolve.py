"""Revisions: from what a person writes to one state of one branch.

    text ─ model.refs.parse ─> base, @{...}, ~ and ^ ─> Position

A bare branch name is its live head, the last durable event; ``NAME~0`` is its newest snapshot.
``NAME@{...}`` is the last point before the stated one that a real disk could have shown after a
power cut: a barrier or a waypoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from blockvault.errors import NotFound
from blockvault.ids import short
from blockvault.model import events, history, projections, refs
from blockvault.model.projected import WaypointRow
from blockvault.model.snapshot import Snapshot
from blockvault.ops import positions, snapshots
from blockvault.ops.positions import Position

if TYPE_CHECKING:
    from blockvault.store.types import Reader
    from blockvault.vault import Vault

split_volume = refs.split_volume

_NO_LIMIT = 1 << 62


def resolve(vault: Vault, text: str, *, exact: bool = False) -> Position:
    """The position that a revision names; ``NotFound`` tells what is missing or what matches."""
    revision = refs.parse(text, events.now_us())
    return _Resolver(vault, revision, exact).run()._replace(text=text)


class _Resolver:
    """One revision being resolved."""

    def __init__(self, vault: Vault, revision: refs.Revision, exact: bool) -> None:
        self.vault = vault
        self.revision = revision
        self.exact = exact
        self.asked = ""
        self.line: list[tuple[int, int]] = []
        """The branches that were gone through, each with the last event of it that belongs."""

    def run(self) -> Position:
        base = self._base()
        if isinstance(base, int):
            position = self._on_branch(base)
        else:
            if self.revision.at is not None:
                raise self._no(f"'{self.revision.base}' is no branch, so it has no @{{...}}")
            position = positions.of_snapshot(self.vault, base)
        if not self.revision.steps:
            return position
        return positions.of_snapshot(self.vault, self._walk(position))

    # -- the base --------------------------------------------------------------------------------

    def _base(self) -> int | bytes:
        """A branch id or a snapshot id; names win over the digits of an id."""
        with self.vault.read() as reader:
            found = dict(self._named(reader))
            if not found and self.revision.hex_prefix:
                matches = list(projections.snapshots(reader, self.revision.hex_prefix))
                if len(matches) > 1:
                    raise self._ambiguous(f"snapshot {short(oid)}" for oid, _ in matches)
                if matches:
                    return matches[0][0]
        if len(found) > 1:
            raise self._ambiguous(found)
        if not found:
            raise self._no(f"no branch, tag or snapshot is called '{self.revision.base}'")
        return next(iter(found.values()))

    def _named(self, reader: Reader) -> Iterator[tuple[str, int | bytes]]:
        base = self.revision.base
        if base == refs.HEAD:
            head = projections.head(reader)
            if head is not None:
                yield base, head
            return
        branch = projections.branch_named(reader, base.removeprefix("heads/"))
        if branch is not None:
            yield f"heads/{base.removeprefix('heads/')}", branch
            if self.revision.at is not None:
                return  # nothing but a branch has moments
        tag = projections.tag_named(reader, base.removeprefix("tags/"))
        if tag is not None:
            yield f"tags/{base.removeprefix('tags/')}", tag.snapshot

    # -- a point on a branch ----------------------------------------------------------------------

    def _on_branch(self, branch: int) -> Position:
        at = self.revision.at
        with self.vault.read() as reader:
            row = projections.get_branch(reader, branch)
            self.asked = row.name
            if at is None:
                return positions.after(self.vault, reader, branch, row.last_seq, True)
            if isinstance(at, refs.AtSeq):
                found = self._at_seq(reader, branch, at.seq)
            else:
                found = self._at_time(reader, branch, at.time_us)
            return found._replace(asked=self.asked)

    def _at_seq(self, reader: Reader, branch: int, seq: int) -> Position:
        last = reader.last().seq
        if seq > last:
            raise self._no(f"the log ends at event {last}")
        self.line = [(branch, _NO_LIMIT)]
        while seq < branch:
            row = projections.get_branch(reader, branch)
            if not row.source:
                raise self._no(f"branch '{row.name}' began at event {branch}")
            if not projections.has_branch(reader, row.source):
                raise self._pruned(reader, branch, f"what '{row.name}' came from")
            branch, seq = row.source, min(seq, row.source_seq)
            self.line.append((branch, row.source_seq))
        return self._after(reader, branch, seq)

    def _at_time(self, reader: Reader, branch: int, time_us: int) -> Position:
        limit = _NO_LIMIT
        while True:
            self.line.append((branch, limit))
            cut = projections.cut(reader, branch)
            if cut and time_us < cut.time_us and not _began_after(reader, branch, time_us):
                # What was pruned may have come after the place where our line left the branch.
                left = projections.waypoint(reader, branch, limit)
                if left is not None and left.time_us <= time_us:
                    return self._after(reader, branch, limit)
                at = projections.waypoint_at_time(reader, branch, time_us)
                raise self._pruned(reader, branch, _shown(time_us), min(limit, at))
            found = projections.trail_at_time(reader, branch, time_us)
            seq = branch - 1
            if found is not None:
                seq = min(limit, positions.last_until(reader, branch, found[0], time_us))
            first = found or next(projections.trail(reader, branch, reverse=False), None)
            if first is not None:
                later = positions.following(reader, branch, first[0], seq)
                self._check_clock(later, seq, limit)
            if seq >= branch:
                return self._after(reader, branch, seq)
            row = projections.get_branch(reader, branch)
            if not row.source:
                raise self._no(f"branch '{row.name}' began after {_shown(time_us)}")
            if not projections.has_branch(reader, row.source):
                raise self._pruned(reader, branch, f"what '{row.name}' came from")
            branch, limit = row.source, row.source_seq

    def _check_clock(self, later: tuple[int, int] | None, seq: int, limit: int) -> None:
        """Refuse a moment if nobody knows what came before it: what follows event ``seq`` has a
        time that is still to come, since times in the log never go back.
        """
        # The clock of now, not of when the text was read: guests go on writing meanwhile.
        if later is not None and later[0] <= limit and later[1] > events.now_us():
            raise self._no(
                f"the clock was ahead when event {later[0]} was recorded, so what came after "
                f"event {seq} has no moments yet; name an event, such as @{{#{later[0]}}}"
            )

    def _after(self, reader: Reader, branch: int, seq: int) -> Position:
        """The branch just after an event of it, unless that was pruned."""
        cut = projections.cut(reader, branch)
        if cut and seq < cut.seq and projections.waypoint(reader, branch, seq) is None:
            raise self._pruned(reader, branch, f"event {seq}", seq)
        return positions.after(self.vault, reader, branch, seq, self.exact)

    # -- steps -----------------------------------------------------------------------------------

    def _walk(self, position: Position) -> bytes:
        if position.tip is None:
            raise self._no(f"{position.name or self.revision.base} has no snapshot yet")
        snapshot: Snapshot | None = self._load(position.tip)
        for step in self.revision.steps:
            assert snapshot is not None
            before = snapshot
            walk = history.nth_ancestor if step.kind == "~" else history.nth_parent
            snapshot = walk(self._load, before, step.number)
            if snapshot is None:
                raise self._no(f"the history before {short(before.id)} is not that long")
        assert snapshot is not None
        return snapshot.id

    def _load(self, oid: bytes) -> Snapshot:
        return snapshots.load(self.vault, oid)

    def _pruned(self, reader: Reader, branch: int, what: str, seq: int = 0) -> NotFound:
        """Says what is kept on both sides of event ``seq``, up to the branch that was asked for.

        By the name of that one: what it came from may have none by now.
        """
        before = next(projections.waypoints(reader, branch, seq), None)
        after = next(self._kept_after(reader, seq), None)
        names = [f"{self.asked}@{{#{found[0]}}}" for found in (before, after) if found]
        return NotFound(
            f"'{self.revision.text}' names no state: {what} was pruned; "
            f"the nearest states that were kept: {', '.join(names)}",
            kind="pruned",
        )

    def _kept_after(self, reader: Reader, seq: int) -> Iterator[tuple[int, WaypointRow]]:
        for branch, limit in reversed(self.line):
            yield from projections.waypoints(reader, branch, limit, start=seq + 1, reverse=False)

    def _no(self, why: str) -> NotFound:
        return NotFound(f"'{self.revision.text}' names no state: {why}", kind="no-revision")

    def _ambiguous(self, matches: Iterable[str]) -> NotFound:
        return NotFound(
            f"'{self.revision.text}' is ambiguous: {', '.join(matches)}", kind="ambiguous"
        )


def _began_after(reader: Reader, branch: int, time_us: int) -> bool:
    """Whether a branch began after a moment, as far as the log still tells."""
    record = reader.record(reader.record_at(time_us + 1))
    if record is None:
        return False
    # Of a gap only the time of its last record is known: the branch may have begun before that.
    return (record.last_seq if record.pruned else record.first_seq - 1) < branch


def _shown(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).astimezone().isoformat(timespec="seconds")
