"""Revisions: from what a person writes to one state of one branch.

    text ─ model.refs.parse ─> base, @{...}, ~ and ^ ─> Position

A position is a point in the log of a branch: the last waypoint at or before it, whose volumes are
complete trees, and the event up to which later writes count.  A bare branch name is its live head,
the last durable event; ``NAME~0`` is its newest snapshot.  ``NAME@{...}`` is the last point before
the stated one that a real disk could have shown after a power cut: a barrier or a waypoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from blockvault.errors import BadRequest, Damaged, NotFound
from blockvault.ids import short
from blockvault.model import events, history, projections, refs
from blockvault.model.projections import BranchRow
from blockvault.model.rows import unpack_rows
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import snapshots

if TYPE_CHECKING:
    from blockvault.ops.refs import Branch
    from blockvault.store.types import Reader
    from blockvault.vault import Vault

split_volume = refs.split_volume


class Position(NamedTuple):
    """One state: the waypoint's ``volumes`` and the branch's events after it, up to ``seq``.

    ``snapshot`` is the snapshot that this state is, None if it is none; ``tip`` is the newest one
    that it stands on.  ``branch`` is 0 for a snapshot that belongs to no branch.
    """

    text: str
    branch: int
    name: str | None
    waypoint_seq: int
    seq: int
    snapshot: bytes | None
    tip: bytes | None
    volumes: tuple[Volume, ...]
    attachments: tuple[Volume, ...] = ()

    def volume(self, name: str | None) -> Volume:
        """The volume of this name, or the only one for None."""
        if name is None and len(self.volumes) == 1:
            return self.volumes[0]
        for volume in self.volumes:
            if volume.name == name:
                return volume
        have = ", ".join(volume.name for volume in self.volumes) or "none"
        if name is None and self.volumes:
            raise BadRequest(
                f"'{self.text}' has several volumes ({have}); name one as {self.text}:VOLUME",
                kind="which-volume",
            )
        wanted = "no volume" if name is None else f"no volume '{name}'"
        raise NotFound(f"'{self.text}' has {wanted}; it has: {have}", kind="no-volume")


def resolve(vault: Vault, text: str, *, exact: bool = False) -> Position:
    """The position that a revision names; ``NotFound`` tells what is missing or what matches."""
    revision = refs.parse(text, events.now_us())
    return _Resolver(vault, revision, exact).run()._replace(text=text)


def head_of(vault: Vault, branch: Branch, *, exact: bool = True) -> Position:
    """The live head of a branch: its last durable event."""
    with vault.read() as reader:
        return _at(vault, reader, branch.id, branch.seq, exact)


def of_snapshot(vault: Vault, oid: bytes) -> Position:
    """The state that a snapshot recorded."""
    snapshot = snapshots.load(vault, oid)
    with vault.read() as reader:
        row = projections.recorded(reader, oid)
        if row is None:
            raise Damaged(f"snapshot {short(oid)} is not recorded", kind="log-inconsistent")
        name = projections.get_branch(reader, row.branch).name if row.branch else None
    seq = row.seq if row.branch else snapshot.seq
    return Position(
        short(oid), row.branch, name, seq, seq, oid, oid, snapshot.volumes, snapshot.attachments
    )


def check_kept(reader: Reader, position: Position) -> None:
    """``NotFound`` if the state was pruned since the position was resolved."""
    if position.snapshot and projections.recorded(reader, position.snapshot):
        return
    waypoint = projections.waypoint(reader, position.branch, position.waypoint_seq)
    cut = projections.cut(reader, position.branch)
    if waypoint is None or (position.waypoint_seq < position.seq < (cut.seq if cut else 0)):
        raise NotFound(f"'{position.text}' was pruned meanwhile", kind="pruned")


class _Resolver:
    """One revision being resolved."""

    def __init__(self, vault: Vault, revision: refs.Revision, exact: bool) -> None:
        self.vault = vault
        self.revision = revision
        self.exact = exact

    def run(self) -> Position:
        base = self._base()
        if isinstance(base, int):
            position = self._on_branch(base)
        else:
            if self.revision.at is not None:
                raise self._no(f"'{self.revision.base}' is no branch, so it has no @{{...}}")
            position = of_snapshot(self.vault, base)
        if not self.revision.steps:
            return position
        return of_snapshot(self.vault, self._walk(position))

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
        tag = projections.tag_named(reader, base.removeprefix("tags/"))
        if tag is not None:
            yield f"tags/{base.removeprefix('tags/')}", tag.snapshot

    # -- a point on a branch ----------------------------------------------------------------------

    def _on_branch(self, branch: int) -> Position:
        at = self.revision.at
        with self.vault.read() as reader:
            if at is None:
                row = projections.get_branch(reader, branch)
                return _at(self.vault, reader, branch, row.last_seq, True)
            if isinstance(at, refs.AtSeq):
                return self._at_seq(reader, branch, at.seq)
            return self._at_time(reader, branch, at.time_us)

    def _at_seq(self, reader: Reader, branch: int, seq: int) -> Position:
        last = reader.last().seq
        if seq > last:
            raise self._no(f"the log ends at event {last}")
        while seq < branch:
            row = projections.get_branch(reader, branch)
            if not row.source:
                raise self._no(f"branch '{row.name}' began at event {branch}")
            if not _exists(reader, row.source):
                raise self._pruned(reader, branch, f"what '{row.name}' came from")
            branch, seq = row.source, min(seq, row.source_seq)
        cut = projections.cut(reader, branch)
        if cut and seq < cut.seq and projections.waypoint(reader, branch, seq) is None:
            raise self._pruned(reader, branch, f"event {seq}", seq)
        return _at(self.vault, reader, branch, seq, self.exact)

    def _at_time(self, reader: Reader, branch: int, time_us: int) -> Position:
        limit = 1 << 62
        while True:
            cut = projections.cut(reader, branch)
            if cut and time_us < cut.time_us:
                at = projections.waypoint_at_time(reader, branch, time_us)
                raise self._pruned(reader, branch, _shown(time_us), at)
            found = projections.trail_at_time(reader, branch, time_us)
            if found is not None:
                seq = min(limit, _last_until(reader, branch, found[0], time_us))
                if seq >= branch:
                    return _at(self.vault, reader, branch, seq, self.exact)
            row = projections.get_branch(reader, branch)
            if not row.source:
                raise self._no(f"branch '{row.name}' began after {_shown(time_us)}")
            if not _exists(reader, row.source):
                raise self._pruned(reader, branch, f"what '{row.name}' came from")
            branch, limit = row.source, row.source_seq

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
        """Says what is kept of the branch on both sides of ``seq``."""
        row = projections.get_branch(reader, branch)
        kept = projections.waypoints(reader, branch, reverse=False)
        after = next((at for at, _ in kept if at > seq), row.last_seq)
        before = next(projections.waypoints(reader, branch, seq), None)
        names = [f"{row.name}@{{#{at}}}" for at in ([before[0]] if before else []) + [after]]
        return NotFound(
            f"'{self.revision.text}' names no state: {what} was pruned; "
            f"the nearest states that were kept: {', '.join(names)}",
            kind="pruned",
        )

    def _no(self, why: str) -> NotFound:
        return NotFound(f"'{self.revision.text}' names no state: {why}", kind="no-revision")

    def _ambiguous(self, matches: Iterable[str]) -> NotFound:
        return NotFound(
            f"'{self.revision.text}' is ambiguous: {', '.join(matches)}", kind="ambiguous"
        )


def _at(vault: Vault, reader: Reader, branch: int, seq: int, exact: bool) -> Position:
    """The branch just after event ``seq``, or at the last crash-consistent point before it."""
    row = projections.get_branch(reader, branch)
    seq = min(seq, row.last_seq)
    if not exact:
        seq = _consistent(reader, branch, row, seq)
    found = next(projections.waypoints(reader, branch, seq), None)
    if found is None:
        raise Damaged(
            f"branch '{row.name}' has no waypoint at event {seq}", kind="log-inconsistent"
        )
    waypoint_seq, waypoint = found
    seq = max(waypoint_seq, seq)
    return _with_snapshot(
        vault,
        reader,
        Position(
            row.name,
            branch,
            None if row.deleted else row.name,
            waypoint_seq,
            seq,
            waypoint.snapshot if seq == waypoint_seq else None,
            waypoint.tip,
            waypoint.volumes,
        ),
    )


def _exists(reader: Reader, branch: int) -> bool:
    """Whether a branch that another one came from was not pruned as a whole."""
    return reader.get(projections.BRANCHES, projections.key(branch)) is not None


def _with_snapshot(vault: Vault, reader: Reader, position: Position) -> Position:
    """Tell that a checkpointed state is its tip again, and what files came with a snapshot."""
    if position.tip is None or position.seq != position.waypoint_seq:
        return position
    if projections.recorded(reader, position.tip) is None:
        return position
    tip = Snapshot.decode(vault.objects.get(position.tip))
    if tip.volumes != position.volumes:
        return position
    return position._replace(snapshot=tip.id, attachments=tip.attachments)


def _consistent(reader: Reader, branch: int, row: BranchRow, seq: int) -> int:
    """The last barrier or waypoint of the branch at or before event ``seq``."""
    if row.barrier_seq <= seq:
        return row.barrier_seq
    for first_seq, trail in projections.trail(reader, branch, seq):
        if 0 < trail.barrier_seq <= seq:
            return trail.barrier_seq
        if trail.barrier_seq:
            barriers = [at for at, _ in _rows(reader, branch, first_seq, _POINTS) if at <= seq]
            if barriers:
                return barriers[-1]
    raise Damaged(f"branch '{row.name}' has no beginning", kind="log-inconsistent")


def _last_until(reader: Reader, branch: int, first_seq: int, time_us: int) -> int:
    """The last content event of one record whose time is at or before ``time_us``."""
    content = events.DATA_CODES | events.WAYPOINT_CODES
    until = [at for at, when in _rows(reader, branch, first_seq, content) if when <= time_us]
    return until[-1] if until else first_seq - 1


_POINTS = events.WAYPOINT_CODES | {events.BARRIER}


def _rows(
    reader: Reader, branch: int, first_seq: int, codes: frozenset[int]
) -> Iterator[tuple[int, int]]:
    """(seq, time) of the branch's events of these kinds in one record."""
    record = reader.record(first_seq)
    if record is None:
        raise Damaged(f"the log has no record of event {first_seq}", kind="broken-chain")
    for seq, row in enumerate(unpack_rows(record.payload), record.first_seq):
        if row[0] in codes and branch == (seq if row[0] == events.BRANCH_CREATED else row[2]):
            yield seq, record.time_us + row[1]


def _shown(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).astimezone().isoformat(timespec="seconds")
