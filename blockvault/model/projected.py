"""The rows of the projections: each packs to the value that its table holds.

``state`` makes them of the log, ``projections`` reads them; which table holds which stands there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from blockvault.model.snapshot import Volume


class BranchRow(NamedTuple):
    """A branch.  ``tip`` is the newest snapshot in its line of history, after a rollback that of
    the target, ``tip_seq`` the event that set it (0: none yet); ``waypoint_seq`` its last waypoint,
    ``last_seq`` its last content event, ``barrier_seq`` its last barrier or waypoint.
    """

    name: str
    source: int
    source_seq: int
    deleted: bool
    waypoint_seq: int
    last_seq: int
    tip: bytes | None
    tip_seq: int
    barrier_seq: int


class WaypointRow(NamedTuple):
    """A waypoint: ``snapshot`` is the one its state equals, ``tip`` the newest one in the line.

    ``detail``: BranchCreated (source, source_seq); Imported (source text,); RolledBack
    (target_branch, target_seq); VolumeChanged (action, volume); else ().
    """

    code: int
    time_us: int
    snapshot: bytes | None
    tip: bytes | None
    volumes: tuple[Volume, ...]
    detail: tuple[Any, ...]


class TrailRow(NamedTuple):
    """What one record did to one branch: its last content event and last crash-consistent point
    (barrier or waypoint; 0: none) in it, and the record's time.
    """

    last_seq: int
    barrier_seq: int
    time_us: int


class TagRow(NamedTuple):
    """A tag: what it names, and the event that set it."""

    snapshot: bytes
    seq: int


class RecordedRow(NamedTuple):
    """Where a snapshot was first recorded; ``branch`` is 0 if a tag was the first to name it."""

    seq: int
    branch: int


class HoldRow(NamedTuple):
    """Why a snapshot is kept, since which event and moment."""

    seq: int
    time_us: int
    text: str


class DeletedRow(NamedTuple):
    """When a branch that may still be restored was deleted."""

    seq: int
    time_us: int


class CutRow(NamedTuple):
    """A branch was pruned: from event ``seq`` on every event of it is kept, before it only the
    waypoints of snapshots.  ``time_us`` is the time of that event, always a waypoint.
    """

    seq: int
    time_us: int


class GraftRow(NamedTuple):
    """A snapshot that was pruned: its children continue these ones, the nearest that are kept."""

    parents: tuple[bytes, ...]
    seq: int
    time_us: int
