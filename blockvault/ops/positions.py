"""Positions: points in the log of a branch, and the states that they are.

A position is the last waypoint at or before its point, whose volumes are complete trees, and the
event up to which later writes count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from blockvault.errors import BadRequest, Damaged, NotFound
from blockvault.ids import short
from blockvault.model import events, projections
from blockvault.model.projected import BranchRow
from blockvault.model.rows import Row, unpack_rows
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import snapshots

if TYPE_CHECKING:
    from blockvault.ops.refs import Branch
    from blockvault.store.types import Reader, Record
    from blockvault.vault import Vault


class Position(NamedTuple):
    """One state: the waypoint's ``volumes`` and the branch's events after it, up to ``seq``.

    ``snapshot`` is the snapshot that this state is, None if it is none; ``tip`` is the newest one
    that it stands on.  ``branch`` is 0 for a snapshot that belongs to no branch.  ``asked`` is the
    name of the branch that was asked for: ``branch``, or one that came from it and is still there.
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
    asked: str = ""

    @property
    def canonical(self) -> str:
        """A revision that will always mean this very state."""
        if self.snapshot is not None:
            return self.snapshot.hex()
        return f"{self.name or self.asked}@{{#{self.seq}}}"

    def volume(self, name: str | None, how: str | None = None) -> Volume:
        """The volume of this name, or the only one for None; ``how`` says how else to name one."""
        if name is None and len(self.volumes) == 1:
            return self.volumes[0]
        for volume in self.volumes:
            if volume.name == name:
                return volume
        have = ", ".join(volume.name for volume in self.volumes) or "none"
        if name is None and self.volumes:
            how = how or f"as {self.text}:VOLUME"
            raise BadRequest(
                f"'{self.text}' has several volumes ({have}); name one {how}", kind="which-volume"
            )
        wanted = "no volume" if name is None else f"no volume '{name}'"
        raise NotFound(f"'{self.text}' has {wanted}; it has: {have}", kind="no-volume")


def head_of(vault: Vault, branch: Branch, *, exact: bool = True) -> Position:
    """The live head of a branch: its last durable event."""
    with vault.read() as reader:
        return after(vault, reader, branch.id, branch.seq, exact)


def of_snapshot(vault: Vault, oid: bytes) -> Position:
    """The state that a snapshot recorded."""
    snapshot = snapshots.load(vault, oid)
    with vault.read() as reader:
        row = projections.recorded(reader, oid)
        if row is None:
            raise Damaged(f"snapshot {short(oid)} is not recorded", kind="log-inconsistent")
        name = _name(projections.get_branch(reader, row.branch)) if row.branch else None
    seq = row.seq if row.branch else snapshot.seq
    return Position(
        short(oid), row.branch, name, seq, seq, oid, oid, snapshot.volumes, snapshot.attachments
    )


def after(vault: Vault, reader: Reader, branch: int, seq: int, exact: bool) -> Position:
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
            _name(row),
            waypoint_seq,
            seq,
            waypoint.snapshot if seq == waypoint_seq else None,
            waypoint.tip,
            waypoint.volumes,
            asked=row.name,
        ),
    )


def _name(row: BranchRow) -> str | None:
    """The name of a branch; one that was deleted has none, and another may be called so by now."""
    return None if row.deleted else row.name


def last_until(reader: Reader, branch: int, first_seq: int, time_us: int) -> int:
    """The last content event of one record whose time is at or before ``time_us``."""
    rows = _rows(reader, branch, first_seq, events.CONTENT_CODES)
    until = [at for at, when in rows if when <= time_us]
    return until[-1] if until else first_seq - 1


def following(reader: Reader, branch: int, first_seq: int, seq: int) -> tuple[int, int] | None:
    """Number and time of what comes after event ``seq``: a content event of the record that begins
    at ``first_seq``, or the next record of the branch.
    """
    for at, when in _rows(reader, branch, first_seq, events.CONTENT_CODES):
        if at > seq:
            return at, when
    later = next(projections.trail(reader, branch, start=seq + 1, reverse=False), None)
    return None if later is None else (later[0], later[1].time_us)


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
    # A prune keeps some old waypoints, but no trail that leads to them.
    if projections.waypoint(reader, branch, seq) is not None:
        return seq
    for first_seq, trail in projections.trail(reader, branch, seq):
        if 0 < trail.barrier_seq <= seq:
            return trail.barrier_seq
        if trail.barrier_seq:
            rows = _rows(reader, branch, first_seq, events.POINT_CODES)
            points = [at for at, _ in rows if at <= seq]
            if points:
                return points[-1]
    raise Damaged(f"branch '{row.name}' has no beginning", kind="log-inconsistent")


def _rows(
    reader: Reader, branch: int, first_seq: int, codes: frozenset[int]
) -> Iterator[tuple[int, int]]:
    """(seq, time) of the branch's events of these kinds in one record."""
    record = reader.record(first_seq)
    if record is None:
        raise Damaged(f"the log has no record of event {first_seq}", kind="broken-chain")
    for seq, row in rows_in(record, branch, codes):
        yield seq, record.time_us + row[1]


def rows_in(record: Record, branch: int, codes: frozenset[int]) -> Iterator[tuple[int, Row]]:
    """(seq, row) of a branch's events of these kinds in a record."""
    for seq, row in enumerate(unpack_rows(record.payload), record.first_seq):
        if row[0] in codes and branch == (seq if row[0] == events.BRANCH_CREATED else row[2]):
            yield seq, row
