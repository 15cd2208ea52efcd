"""Events: everything that can happen to a vault, as small closed values, and their rows.

The log is made of *records*; a record is a list of *rows*, ``[code, dt_us, field...]``, one for
each event, numbered on from the record's first sequence number.  ``dt_us`` is the time since the
record's, so that a row is short; it never decreases within a record.

Two forms exist because a busy disk makes tens of thousands of *data* events a second (codes 16
to 19).  Everybody may use the classes; a session builds the rows of its writes as plain tuples, and
the fold reads rows as they are.  ``unpack_rows`` checks what comes from the disk once, either way.

*Waypoints* (2 and 32 to 36) carry the complete volumes of their branch.  The state of a branch at
any event is its last waypoint at or before it plus the data events in between.

Codes are for ever.  A new event gets a new code, and a program that does not know it stops with
``Unsupported`` rather than fold half of a history.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, NoReturn, dataclass_transform

from blockvault.encoding import pack, unpack
from blockvault.errors import BadRequest, Damaged, Unsupported
from blockvault.ids import ID_SIZE
from blockvault.model.checks import (
    LIMIT,
    check_branch,
    check_id,
    check_ids,
    check_number,
    check_optional_id,
    check_text,
    check_vault_id,
)
from blockvault.model.names import check_ref_name, check_volume_name
from blockvault.model.snapshot import Volume, check_volumes, volumes_from

Row = tuple[Any, ...]

INIT: Final = 1
BRANCH_CREATED: Final = 2
BRANCH_RENAMED: Final = 3
BRANCH_DELETED: Final = 4
BRANCH_RESTORED: Final = 5
SWITCHED: Final = 6
TAGGED: Final = 7
UNTAGGED: Final = 8
WROTE: Final = 16
ZEROED: Final = 17
TRIMMED: Final = 18
BARRIER: Final = 19
CHECKPOINTED: Final = 32
IMPORTED: Final = 33
SNAPSHOTTED: Final = 34
ROLLED_BACK: Final = 35
VOLUME_CHANGED: Final = 36
HELD: Final = 48
UNHELD: Final = 49
POLICY_SET: Final = 50
PRUNED: Final = 51

DATA_CODES: Final = frozenset({WROTE, ZEROED, TRIMMED, BARRIER})
WAYPOINT_CODES: Final = frozenset(
    {BRANCH_CREATED, CHECKPOINTED, IMPORTED, SNAPSHOTTED, ROLLED_BACK, VOLUME_CHANGED}
)
BASE_TABLES: Final = ("refs", "branches", "waypoints", "snapshots")
"""The projections that a base holds; the trail follows from the records that are kept."""

VOLUME_ACTIONS: Final = ("add", "remove", "rename", "resize")


def now_us() -> int:
    """The wall clock, in microseconds since 1970 UTC, as events count time."""
    return time.time_ns() // 1000


# -- the events ------------------------------------------------------------------------------


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Event:
    """Base of all events: immutable, equal by value, checked when one is built (``BadRequest``).

    They are no dataclasses: generating the methods of twenty of those would take ten milliseconds
    of every command.
    """

    CODE: ClassVar[int]
    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.FIELDS = tuple(name for name in cls.__annotations__ if name != "CODE")

    def __init__(self, **values: Any) -> None:
        if values.keys() != set(self.FIELDS):
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(self.FIELDS)}")
        for name, check in _FIELDS[self.CODE]:
            check(values[name])
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("events are immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("events are immutable")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        return hash((self.CODE, *(getattr(self, name) for name in self.FIELDS)))

    def __repr__(self) -> str:
        values = (f"{name}={getattr(self, name)!r}" for name in self.FIELDS)
        return f"{type(self).__name__}({', '.join(values)})"


class Init(Event):
    """The vault began; always event 1."""

    CODE: ClassVar[int] = INIT
    vault_id: bytes
    block_size: int
    compression: str


class BranchCreated(Event):
    """A line of history began.  The branch's id is this event's sequence number.

    It continues ``source`` as that was after event ``source_seq`` (both 0: it continues nothing).
    ``snapshot`` is the snapshot that ``volumes`` equal, if they equal one.
    """

    CODE: ClassVar[int] = BRANCH_CREATED
    name: str
    source: int
    source_seq: int
    snapshot: bytes | None
    volumes: tuple[Volume, ...]


class BranchRenamed(Event):
    """A branch got another name."""

    CODE: ClassVar[int] = BRANCH_RENAMED
    branch: int
    name: str


class BranchDeleted(Event):
    """A branch lost its name; its history stays."""

    CODE: ClassVar[int] = BRANCH_DELETED
    branch: int


class BranchRestored(Event):
    """A deleted branch is back, under this name."""

    CODE: ClassVar[int] = BRANCH_RESTORED
    branch: int
    name: str


class Switched(Event):
    """HEAD names another branch."""

    CODE: ClassVar[int] = SWITCHED
    branch: int


class Tagged(Event):
    """A tag names a snapshot; an older tag of this name is replaced."""

    CODE: ClassVar[int] = TAGGED
    name: str
    snapshot: bytes


class Untagged(Event):
    """A tag is gone."""

    CODE: ClassVar[int] = UNTAGGED
    name: str


class Wrote(Event):
    """``length`` bytes at ``offset`` were written.

    ``ids`` are the concatenated ids of all blocks touched, whole, the first being block
    ``offset // block_size``.
    """

    CODE: ClassVar[int] = WROTE
    branch: int
    volume: str
    offset: int
    length: int
    ids: bytes


class Zeroed(Event):
    """Whole blocks were set to zero; the end may also be the volume's."""

    CODE: ClassVar[int] = ZEROED
    branch: int
    volume: str
    offset: int
    length: int


class Trimmed(Event):
    """As ``Zeroed``, but the guest said only that it needs the blocks no more."""

    CODE: ClassVar[int] = TRIMMED
    branch: int
    volume: str
    offset: int
    length: int


class Barrier(Event):
    """A flush ended: what is before this event is a state that a real disk could have held."""

    CODE: ClassVar[int] = BARRIER
    branch: int


class Checkpointed(Event):
    """The writes since the last waypoint were folded into trees; the state did not change."""

    CODE: ClassVar[int] = CHECKPOINTED
    branch: int
    volumes: tuple[Volume, ...]


class Imported(Event):
    """Volumes were replaced from images; ``source`` says which, for people."""

    CODE: ClassVar[int] = IMPORTED
    branch: int
    volumes: tuple[Volume, ...]
    snapshot: bytes
    source: str


class Snapshotted(Event):
    """The state of this moment became a snapshot."""

    CODE: ClassVar[int] = SNAPSHOTTED
    branch: int
    volumes: tuple[Volume, ...]
    snapshot: bytes


class RolledBack(Event):
    """The branch has the state again that ``target_branch`` had after event ``target_seq``.

    ``target_branch`` is 0 for a snapshot that only a tag names.
    """

    CODE: ClassVar[int] = ROLLED_BACK
    branch: int
    volumes: tuple[Volume, ...]
    snapshot: bytes | None
    target_branch: int
    target_seq: int


class VolumeChanged(Event):
    """The set of volumes changed: ``action`` (one of ``VOLUME_ACTIONS``) was done to ``volume``."""

    CODE: ClassVar[int] = VOLUME_CHANGED
    branch: int
    volumes: tuple[Volume, ...]
    action: str
    volume: str


class Held(Event):
    """A snapshot is kept whatever the policies say; ``text`` tells people why."""

    CODE: ClassVar[int] = HELD
    snapshot: bytes
    text: str


class Unheld(Event):
    """The policies decide on a snapshot again."""

    CODE: ClassVar[int] = UNHELD
    snapshot: bytes


class PolicySet(Event):
    """What to keep of a branch (0: of every branch that has no policy of its own).

    ``rules`` are pairs of a name and a number or a tuple of patterns, in the order of the names;
    ``retention.Policy`` knows their meaning.  None at all takes the policy away.
    """

    CODE: ClassVar[int] = POLICY_SET
    branch: int
    rules: tuple[tuple[str, int | tuple[str, ...]], ...]


class Pruned(Event):
    """What the policies no longer keep was forgotten; alone in its record.

    ``base`` is every row (table, key, value) that the tables refs, branches, waypoints and
    snapshots have after this event: a replay begins here.  ``kept`` are the runs of older records
    that are still needed for their writes, (first seq, end, chain before): every record from first
    seq to end - 1.  All others before this event may be gone.
    """

    CODE: ClassVar[int] = PRUNED
    kept: tuple[tuple[int, int, bytes], ...]
    base: tuple[tuple[str, bytes, bytes], ...]


EVENTS: Final[dict[int, type[Event]]] = {
    kind.CODE: kind
    for kind in (
        *(Init, BranchCreated, BranchRenamed, BranchDeleted, BranchRestored),
        *(Switched, Tagged, Untagged, Wrote, Zeroed, Trimmed, Barrier),
        *(Checkpointed, Imported, Snapshotted, RolledBack, VolumeChanged),
        *(Held, Unheld, PolicySet, Pruned),
    )
}


# -- what each field may hold ----------------------------------------------------------------


def _action(value: Any) -> None:
    if value not in VOLUME_ACTIONS:
        raise BadRequest(f"{value!r:.80} is not one of {', '.join(VOLUME_ACTIONS)}")


def _tuples(value: Any, size: int, what: str) -> tuple[tuple[Any, ...], ...]:
    if not isinstance(value, tuple) or not all(
        isinstance(item, tuple) and len(item) == size for item in value
    ):
        raise BadRequest(f"{value!r:.80} are no {what}")
    return value


def _rules(value: Any) -> None:
    names = []
    for name, amount in _tuples(value, 2, "rules"):
        names.append(check_text(name))
        for pattern in amount if isinstance(amount, tuple) else ():
            check_text(pattern)
        if not isinstance(amount, tuple):
            check_number(amount)
    if names != sorted(set(names)):
        raise BadRequest("rules are in the order of their names, each once")


def _kept(value: Any) -> None:
    at = 0
    for first, end, chain in _tuples(value, 3, "runs of records"):
        check_id(chain)
        if not at < check_number(first) < check_number(end):
            raise BadRequest("runs of records do not ascend")
        at = first


def _base(value: Any) -> None:
    for table, key, row in _tuples(value, 3, "rows"):
        if table not in BASE_TABLES or type(key) is not bytes or type(row) is not bytes:
            raise BadRequest(f"{table!r:.80} has no such row")


_CHECKS: Final[dict[str, Callable[[Any], object]]] = {
    "vault_id": check_vault_id,
    "block_size": check_number,
    "compression": check_text,
    "name": check_ref_name,
    "branch": check_branch,
    "target_branch": check_number,
    "target_seq": check_number,
    "source_seq": check_number,
    "offset": check_number,
    "length": check_number,
    "ids": check_ids,
    "volume": check_volume_name,
    "volumes": check_volumes,
    "action": _action,
    "text": check_text,
    "rules": _rules,
    "kept": _kept,
    "base": _base,
}
_SPECIAL: Final[dict[tuple[int, str], Callable[[Any], object]]] = {
    (BRANCH_CREATED, "source"): check_number,
    (BRANCH_CREATED, "snapshot"): check_optional_id,
    (ROLLED_BACK, "snapshot"): check_optional_id,
    (IMPORTED, "source"): check_text,
    (IMPORTED, "snapshot"): check_id,
    (SNAPSHOTTED, "snapshot"): check_id,
    (TAGGED, "snapshot"): check_id,
    (HELD, "snapshot"): check_id,
    (UNHELD, "snapshot"): check_id,
    (POLICY_SET, "branch"): check_number,
}
_FIELDS: Final[dict[int, tuple[tuple[str, Callable[[Any], object]], ...]]] = {
    code: tuple((name, _SPECIAL.get((code, name)) or _CHECKS[name]) for name in kind.FIELDS)
    for code, kind in EVENTS.items()
}
_VOLUMES_AT: Final[dict[int, int]] = {
    code: 2 + [name for name, _ in table].index("volumes")
    for code, table in _FIELDS.items()
    if code in WAYPOINT_CODES
}


# -- rows ------------------------------------------------------------------------------------


def to_row(event: Event, dt_us: int) -> Row:
    """The row of an event that happened ``dt_us`` after its record's time."""
    names = _FIELDS[event.CODE]
    return (event.CODE, dt_us, *(getattr(event, name) for name, _ in names))


def from_row(row: Sequence[Any]) -> tuple[int, Event]:
    """``(dt_us, event)`` of a row; ``Damaged`` if its fields are wrong."""
    code, dt_us, *values = row
    kind = EVENTS.get(code)
    if kind is None:
        raise _unknown(code)
    names = _FIELDS[code]
    try:
        if code in WAYPOINT_CODES:
            at = _VOLUMES_AT[code] - 2
            values[at] = volumes_from(values[at])
        pairs = zip(names, values, strict=True)
        return check_number(dt_us), kind(**{name: value for (name, _), value in pairs})
    except (TypeError, ValueError, IndexError, BadRequest) as error:
        raise Damaged(f"event {kind.__name__} is damaged: {error}", kind="bad-event") from None


def pack_rows(rows: Sequence[Row]) -> bytes:
    """The payload of a record."""
    return pack(rows)


def unpack_rows(payload: bytes | memoryview) -> list[Row]:
    """The rows of a record, checked: what passes here can be folded without further doubt.

    Rows of data events stay as they are, volumes become ``Volume``s.  ``Damaged`` if the payload is
    not a list of sound rows, ``Unsupported`` if it holds an event of a later version.
    """
    value = unpack(payload, "log record")
    if not isinstance(value, tuple) or not value:
        raise Damaged("log record is not a list of events", kind="bad-event")
    before = 0
    rows = []
    for row in value:
        rows.append(_checked(row))
        if not before <= row[1]:
            raise Damaged("times within a log record run backwards", kind="bad-event")
        before = row[1]
    return rows


def _checked(row: Any) -> Row:
    if not isinstance(row, tuple) or len(row) < 2 or type(row[0]) is not int:
        raise Damaged(f"{row!r:.80} is not an event", kind="bad-event")
    if row[0] == WROTE and len(row) == 7:
        # The commonest row by far: the same checks as in Wrote, without building one.
        _, dt_us, branch, volume, offset, length, ids = row
        if (
            type(dt_us) is type(branch) is type(offset) is type(length) is int
            and type(volume) is str
            and type(ids) is bytes
            and min(dt_us, offset, length, branch - 1) >= 0
            and max(dt_us, offset, length, branch) < LIMIT
            and ids
            and not len(ids) % ID_SIZE
            and _known_volume(volume)
        ):
            return row
    dt_us, event = from_row(row)
    return to_row(event, dt_us)


_known: set[str] = set()


def _known_volume(name: str) -> bool:
    """Whether a name passed the check, remembering the few that a machine has."""
    if name in _known:
        return True
    try:
        check_volume_name(name)
    except BadRequest:
        return False
    if len(_known) < 1024:
        _known.add(name)
    return True


def _unknown(code: Any) -> Unsupported:
    return Unsupported(f"the log holds an event of code {code!r:.20}; a later program wrote it")
