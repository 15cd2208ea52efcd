"""Events: everything that can happen to a vault, as small closed values.

The log is made of them: ``rows`` has the form in which it keeps them, ``fields`` what their fields
may hold.  Everybody may use the classes; a session builds the rows of its writes as plain tuples,
because a busy disk makes tens of thousands of *data* events a second (codes 16 to 19).

*Waypoints* (2 and 32 to 36) carry the complete volumes of their branch.  The state of a branch at
any event is its last waypoint at or before it plus the data events in between.

Codes are for ever.  A new event gets a new code, and a program that does not know it stops with
``Unsupported`` rather than fold half of a history.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, Final, NoReturn, dataclass_transform

from blockvault.model.fields import Check, checks_of
from blockvault.model.snapshot import Volume

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
CONTENT_CODES: Final = DATA_CODES | WAYPOINT_CODES
"""What moves a branch on."""
POINT_CODES: Final = WAYPOINT_CODES | {BARRIER}
"""After these a branch is as a real disk could have shown it after a power cut."""


def now_us() -> int:
    """The wall clock, in microseconds since 1970 UTC, as events count time."""
    return time.time_ns() // 1000


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Event:
    """Base of all events: immutable, equal by value, checked when one is built (``BadRequest``).

    They are no dataclasses: generating the methods of twenty of those would take ten milliseconds
    of every command.
    """

    CODE: ClassVar[int]
    FIELDS: ClassVar[tuple[str, ...]] = ()
    CHECKS: ClassVar[tuple[tuple[str, Check], ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.FIELDS = tuple(name for name in cls.__annotations__ if name != "CODE")
        cls.CHECKS = checks_of(cls.__name__, cls.FIELDS)

    def __init__(self, **values: Any) -> None:
        if values.keys() != set(self.FIELDS):
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(self.FIELDS)}")
        for name, check in self.CHECKS:
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
