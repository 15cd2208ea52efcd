"""The projections: what the log says, folded into tables that answer in one lookup.

    refs       b"HEAD" -> [branch]   b"heads/NAME" -> [branch]   b"tags/NAME" -> TagRow
               b"holds/" snapshot id -> HoldRow      b"deleted/" branch -> DeletedRow
               b"policies/" branch -> rules (0: of the vault)
               b"cuts/" branch -> CutRow             b"grafts/" snapshot id -> GraftRow
    branches   branch -> BranchRow
    waypoints  branch, seq -> WaypointRow
    trail      branch, first seq of a record -> TrailRow
    snapshots  snapshot id -> RecordedRow

Numbers in keys are u64 big-endian, values are packed arrays.  ``state`` writes these tables, and
only from the log; the functions here read them through any store's ``Reader``.  They return None
or nothing for what does not exist; ``Damaged`` for a row that cannot be decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

from blockvault.encoding import unpack
from blockvault.errors import Damaged
from blockvault.model.projected import (
    BranchRow,
    CutRow,
    DeletedRow,
    GraftRow,
    HoldRow,
    RecordedRow,
    TagRow,
    TrailRow,
    WaypointRow,
)
from blockvault.model.snapshot import volumes_from

REFS: Final = "refs"
BRANCHES: Final = "branches"
WAYPOINTS: Final = "waypoints"
TRAIL: Final = "trail"
SNAPSHOTS: Final = "snapshots"
TABLES: Final = (REFS, BRANCHES, WAYPOINTS, TRAIL, SNAPSHOTS)

HEAD: Final = b"HEAD"
HEADS: Final = b"heads/"
TAGS: Final = b"tags/"
HOLDS: Final = b"holds/"
POLICIES: Final = b"policies/"
DELETED: Final = b"deleted/"
CUTS: Final = b"cuts/"
GRAFTS: Final = b"grafts/"


class Tables(Protocol):
    """What can be read of the projections: any store's ``Reader``."""

    def get(self, table: str, key: bytes) -> bytes | None: ...
    def scan(
        self, table: str, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]: ...


def key(*numbers: int) -> bytes:
    """The key made of these numbers, so that keys sort as the numbers do."""
    return b"".join([number.to_bytes(8, "big") for number in numbers])


def numbers(data: bytes) -> tuple[int, ...]:
    """The numbers of a ``key``."""
    return tuple(int.from_bytes(data[at : at + 8], "big") for at in range(0, len(data), 8))


def _waypoint(data: bytes) -> WaypointRow:
    value = unpack(data, "waypoint")
    try:
        code, time_us, snapshot, tip, volumes, *detail = value
        return WaypointRow(code, time_us, snapshot, tip, volumes_from(volumes), tuple(detail))
    except (TypeError, ValueError):
        raise Damaged("waypoint has another shape", kind="bad-encoding") from None


def _fields(data: bytes, count: int, what: str) -> tuple[Any, ...]:
    value = unpack(data, what)
    if not isinstance(value, tuple) or len(value) != count:
        raise Damaged(f"{what} does not have {count} fields", kind="bad-encoding")
    return value


# -- reading ---------------------------------------------------------------------------------


def get_branch(tables: Tables, branch: int) -> BranchRow:
    """A branch by its id; ``Damaged`` if there is none, for ids come from the tables."""
    data = tables.get(BRANCHES, key(branch))
    if data is None:
        raise Damaged(f"branch {branch} is missing", kind="log-inconsistent")
    return BranchRow(*_fields(data, 9, "branch"))


def has_branch(tables: Tables, branch: int) -> bool:
    """Whether there is a branch of this id: one that others came from may be pruned as a whole."""
    return tables.get(BRANCHES, key(branch)) is not None


def branches(tables: Tables) -> Iterator[tuple[int, BranchRow]]:
    """All branches, deleted ones too, in the order of their creation."""
    for found, data in tables.scan(BRANCHES):
        yield numbers(found)[0], BranchRow(*_fields(data, 9, "branch"))


def head(tables: Tables) -> int | None:
    """The id of the current branch."""
    return _ref(tables, HEAD)


def branch_named(tables: Tables, name: str) -> int | None:
    """The id of the branch of this name, if there is one that is not deleted."""
    return _ref(tables, HEADS + name.encode())


def _ref(tables: Tables, name: bytes) -> int | None:
    data = tables.get(REFS, name)
    if data is None:
        return None
    return int(_fields(data, 1, "ref")[0])


def tag_named(tables: Tables, name: str) -> TagRow | None:
    """The tag of this name."""
    data = tables.get(REFS, TAGS + name.encode())
    return None if data is None else TagRow(*_fields(data, 2, "tag"))


def tags(tables: Tables) -> Iterator[tuple[str, TagRow]]:
    """All tags, by name."""
    for found, data in tables.scan(REFS, TAGS, TAGS[:-1] + b"0"):
        yield found[len(TAGS) :].decode(), TagRow(*_fields(data, 2, "tag"))


def waypoint(tables: Tables, branch: int, seq: int) -> WaypointRow | None:
    """The waypoint at exactly this event."""
    data = tables.get(WAYPOINTS, key(branch, seq))
    return None if data is None else _waypoint(data)


def waypoints(
    tables: Tables,
    branch: int,
    upto: int | None = None,
    *,
    start: int = 0,
    reverse: bool = True,
) -> Iterator[tuple[int, WaypointRow]]:
    """``(seq, row)`` of a branch's waypoints with ``start`` <= seq <= ``upto``; newest first
    unless told.
    """
    span = key(branch, start), _end(branch, upto)
    for found, data in tables.scan(WAYPOINTS, *span, reverse=reverse):
        yield numbers(found)[1], _waypoint(data)


def trail(
    tables: Tables, branch: int, upto: int | None = None, *, start: int = 0, reverse: bool = True
) -> Iterator[tuple[int, TrailRow]]:
    """``(first_seq, row)`` of the records that hold content events of a branch, with ``start`` <=
    first_seq <= ``upto``; newest first unless told.
    """
    span = key(branch, start), _end(branch, upto)
    for found, data in tables.scan(TRAIL, *span, reverse=reverse):
        yield numbers(found)[1], TrailRow(*_fields(data, 3, "trail"))


def trail_at_time(tables: Tables, branch: int, time_us: int) -> tuple[int, TrailRow] | None:
    """The last record of a branch whose time is at or before ``time_us``; a few lookups, however
    long the branch is, because times and sequence numbers ascend together.
    """
    newest = next(trail(tables, branch), None)
    if newest is None or newest[1].time_us <= time_us:
        return newest
    oldest = next(trail(tables, branch, reverse=False), None)
    if oldest is None or oldest[1].time_us > time_us:
        return None
    low, high, found = oldest[0], newest[0], oldest
    while low <= high:
        at = next(trail(tables, branch, (low + high) // 2))
        if at[1].time_us <= time_us:
            found = at
            low = (low + high) // 2 + 1
        else:
            high = at[0] - 1
    return found


def holds(tables: Tables) -> Iterator[tuple[bytes, HoldRow]]:
    """All snapshots that are held, by id."""
    for found, data in tables.scan(REFS, HOLDS, HOLDS[:-1] + b"0"):
        yield found[len(HOLDS) :], HoldRow(*_fields(data, 3, "hold"))


def policy_rules(tables: Tables, branch: int) -> tuple[Any, ...] | None:
    """The rules set for exactly this branch, 0 for the vault's, if there are any."""
    data = tables.get(REFS, POLICIES + key(branch))
    return None if data is None else tuple(unpack(data, "policy"))


def deleted_at(tables: Tables, branch: int) -> DeletedRow | None:
    """When a branch was deleted."""
    data = tables.get(REFS, DELETED + key(branch))
    return None if data is None else DeletedRow(*_fields(data, 2, "deletion"))


def cut(tables: Tables, branch: int) -> CutRow | None:
    """From where on a branch is complete; None if nothing of it was pruned."""
    data = tables.get(REFS, CUTS + key(branch))
    return None if data is None else CutRow(*_fields(data, 2, "cut"))


def graft(tables: Tables, snapshot: bytes) -> GraftRow | None:
    """What takes the place of a pruned snapshot among the parents of its children."""
    data = tables.get(REFS, GRAFTS + snapshot)
    return None if data is None else GraftRow(*_fields(data, 3, "graft"))


def waypoint_at_time(tables: Tables, branch: int, time_us: int) -> int:
    """The last waypoint of a branch at or before a moment, among few; 0 if there is none."""
    found = (seq for seq, row in waypoints(tables, branch) if row.time_us <= time_us)
    return next(found, 0)


def recorded(tables: Tables, snapshot: bytes) -> RecordedRow | None:
    """Where a snapshot was first recorded, if it is one."""
    data = tables.get(SNAPSHOTS, snapshot)
    return None if data is None else RecordedRow(*_fields(data, 2, "snapshot row"))


def snapshots(tables: Tables, prefix: str = "") -> Iterator[tuple[bytes, RecordedRow]]:
    """All snapshots whose id begins with these hex digits, by id."""
    start = bytes.fromhex(prefix + "0" * (len(prefix) % 2))
    for found, data in tables.scan(SNAPSHOTS, start):
        if not found.hex().startswith(prefix.lower()):
            return
        yield found, RecordedRow(*_fields(data, 2, "snapshot row"))


def _end(branch: int, upto: int | None) -> bytes:
    return key(branch + 1) if upto is None else key(branch, upto + 1)
