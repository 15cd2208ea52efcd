"""Which state of a branch is the first bad one: the points to judge, and the search as a file.

Points are events of the branch's line, which goes on into the branches it came from.  They are
listed from coarse to fine, and only between the ends that are known by then:

    snapshots   from the waypoints
    barriers    the last of each record, from the trail; then the others, out of a record or two
    events      the last of each record, from the trail; then the others   (only if exact)

So a search through millions of events reads a few records of the log.  It is kept in the vault's
directory as ``bisect.json`` and goes on where it was left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blockvault import files
from blockvault.errors import BadRequest, IOFailed, NotFound
from blockvault.model import events, projections
from blockvault.model.bisect import Search, Verdict
from blockvault.model.rows import unpack_rows

if TYPE_CHECKING:
    from blockvault.ops.resolve import Position
    from blockvault.store.types import Reader
    from blockvault.vault import Vault

FILE_NAME = "bisect.json"
VERSION = 1


class Stretch(NamedTuple):
    """A part of a line: a branch's events up to ``last``."""

    branch: int
    last: int


@dataclass(frozen=True, slots=True)
class Bisection:
    """A search on the line of ``branch``; ``good`` and ``bad`` are its ends as they were given."""

    branch: int
    volume: str
    exact: bool
    good: int
    bad: int
    marks: tuple[tuple[int, Verdict], ...] = ()

    @property
    def search(self) -> Search:
        """What the ends and all marks tell."""
        known = Search(self.good, self.bad)
        for point, verdict in self.marks:
            known = known.marked(point, verdict)
        return known

    @property
    def untried_ends(self) -> list[tuple[int, Verdict]]:
        """Ends that were stated, but not tried yet."""
        ends = [(self.good, Verdict.GOOD), (self.bad, Verdict.BAD)]
        return [end for end in ends if end not in self.marks]


class Step(NamedTuple):
    """Judge ``seq``, one of ``left`` points of a ``level``: snapshot, barrier or event."""

    level: str
    seq: int
    left: int


class Found(NamedTuple):
    """``bad`` is the first bad point of the finest level, unless it is one of ``suspects``, points
    between ``good`` and ``bad`` that were skipped.
    """

    level: str
    good: int
    bad: int
    suspects: tuple[int, ...]


def start(
    vault: Vault,
    good: str,
    bad: str,
    *,
    branch: str | None = None,
    volume: str | None = None,
    exact: bool = False,
) -> Bisection:
    """Begin a search between two revisions of one line, in place of any earlier one.

    The line is that of ``branch``, else of the branch of ``bad``.
    """
    first, last = (vault.resolve(text, exact=exact) for text in (good, bad))
    if branch is None and last.name is None:
        raise BadRequest(f"'{bad}' is of no branch that has a name: name one")
    chosen = vault.branch(branch or last.name)
    name = last.volume(volume).name
    first.volume(name)
    made = Bisection(chosen.id, name, exact, first.seq, last.seq)
    for end in (first, last):
        if not _on(line(vault, made), end):
            raise BadRequest(f"'{end.text}' is no state that '{chosen.name}' came through")
    made.search  # noqa: B018 - refuses ends in the wrong order
    save(vault.path, made)
    return made


def mark(vault: Vault, bisection: Bisection, seq: int, verdict: Verdict) -> Bisection:
    """Note a verdict; ``BadRequest`` if it contradicts what is known."""
    made = replace(bisection, marks=(*bisection.marks, (seq, verdict)))
    made.search  # noqa: B018 - refuses contradictions
    save(vault.path, made)
    return made


def locate(vault: Vault, bisection: Bisection, text: str) -> int:
    """The point that a revision names on the line of the search."""
    position = vault.resolve(text, exact=bisection.exact)
    if not _on(line(vault, bisection), position):
        raise BadRequest(f"'{text}' is not on the line that is searched")
    return position.seq


def line(vault: Vault, bisection: Bisection) -> list[Stretch]:
    """The branch that is searched and those it came from, newest first."""
    with vault.read() as reader:
        return list(_line(reader, bisection.branch))


def revision(vault: Vault, bisection: Bisection, seq: int) -> str:
    """A point as people and servers name it."""
    with vault.read() as reader:
        return f"{projections.get_branch(reader, bisection.branch).name}@{{#{seq}}}"


def position(vault: Vault, bisection: Bisection, seq: int) -> Position:
    """The state at a point."""
    return vault.resolve(revision(vault, bisection, seq), exact=True)


def step(vault: Vault, bisection: Bisection) -> Step | Found:
    """What to judge next, or the answer."""
    search = bisection.search
    known: list[int] = []
    for level, points in _LEVELS if bisection.exact else _LEVELS[:-2]:
        known = search.within(_points(vault, bisection, search, points))
        chosen = search.next(known)
        if chosen is not None:
            return Step(level, chosen, len(search.untried(known)))
    return Found("event" if bisection.exact else "barrier", search.good, search.bad, tuple(known))


def _on(stretches: list[Stretch], place: Position) -> bool:
    return any(place.branch == part.branch and place.seq <= part.last for part in stretches)


# -- the points --------------------------------------------------------------------------------


def _line(reader: Reader, branch: int) -> Iterator[Stretch]:
    """The branch, the one it came from up to that point, and so on."""
    row = projections.get_branch(reader, branch)
    last = row.last_seq
    while True:
        yield Stretch(branch, last)
        branch, last = row.source, min(last, row.source_seq)
        if not branch or reader.get(projections.BRANCHES, projections.key(branch)) is None:
            return
        row = projections.get_branch(reader, branch)


_Lister = Callable[["Vault", int, int, int], list[int]]
"""(vault, branch, low, high) -> points of the branch, at least those with low < point < high."""


def _points(vault: Vault, bisection: Bisection, search: Search, points: _Lister) -> list[int]:
    found: list[int] = []
    for branch, last in line(vault, bisection):
        found += points(vault, branch, search.good, min(search.bad, last + 1))
    return found


def _snapshots(vault: Vault, branch: int, low: int, high: int) -> list[int]:
    with vault.read() as reader:
        rows = projections.waypoints(reader, branch, high, start=low)
        return [seq for seq, row in rows if row.snapshot is not None]


def _ends(field: str, codes: frozenset[int]) -> tuple[_Lister, _Lister]:
    """Listers for one kind of point: the last of each record, and all of them."""

    def last_ones(vault: Vault, branch: int, low: int, high: int) -> list[int]:
        with vault.read() as reader:
            # A checkpoint is a state that a disk could show, and what pruning keeps of old events.
            found = [seq for seq, _ in projections.waypoints(reader, branch, high, start=low)]
            floor = _floor(reader, branch)
            ends = (getattr(row, field) for _, row in _trail(reader, branch, low, high))
            return found + [seq for seq in ends if seq >= floor and low < seq < high]

    def all_ones(vault: Vault, branch: int, low: int, high: int) -> list[int]:
        with vault.read() as reader:
            low = max(low, _floor(reader, branch) - 1)
            rows = _trail(reader, branch, low, high)
            records = [first for first, row in rows if getattr(row, field) > low]
        return [
            seq
            for first in records
            for seq in _in_record(vault, branch, first, codes)
            if low < seq < high
        ]

    return last_ones, all_ones


def _floor(reader: Reader, branch: int) -> int:
    """The event from which on a branch is complete."""
    cut = projections.cut(reader, branch)
    return cut.seq if cut else 0


def _trail(
    reader: Reader, branch: int, low: int, high: int
) -> Iterator[tuple[int, projections.TrailRow]]:
    """Trail rows of the records that can hold events with low < seq < high."""
    before = next(projections.trail(reader, branch, low), None)
    return projections.trail(reader, branch, high, start=before[0] if before else low)


def _in_record(vault: Vault, branch: int, first: int, codes: frozenset[int]) -> Iterator[int]:
    """The branch's events of these kinds in one record."""
    with vault.read() as reader:
        record = reader.record(first)
    if record is None or record.pruned:
        return
    for seq, row in enumerate(unpack_rows(record.payload), record.first_seq):
        if row[0] in codes and branch == (seq if row[0] == events.BRANCH_CREATED else row[2]):
            yield seq


_BARRIERS = _ends("barrier_seq", events.WAYPOINT_CODES | {events.BARRIER})
_EVENTS = _ends("last_seq", events.WAYPOINT_CODES | events.DATA_CODES)

_LEVELS: list[tuple[str, _Lister]] = [
    ("snapshot", _snapshots),
    ("barrier", _BARRIERS[0]),
    ("barrier", _BARRIERS[1]),
    ("event", _EVENTS[0]),
    ("event", _EVENTS[1]),
]


# -- the file ----------------------------------------------------------------------------------


def save(directory: Path, bisection: Bisection) -> None:
    """Write the search down, all or nothing."""
    path = directory / FILE_NAME
    text = json.dumps({"version": VERSION, **asdict(bisection)}) + "\n"
    try:
        files.replace(path, text.encode(), alone=True)
    except OSError as error:
        raise IOFailed(f"{path} cannot be written: {error.strerror}") from None


def load(directory: Path) -> Bisection:
    """The search that was begun; ``NotFound`` if there is none."""
    path = directory / FILE_NAME
    try:
        value = json.loads(path.read_text())
        if value.pop("version") != VERSION:
            raise ValueError("another version")
        return _from_json(value)
    except FileNotFoundError:
        raise NotFound(
            "no bisection is under way; 'blockvault bisect start GOOD BAD' begins one",
            kind="no-bisection",
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadRequest(
            f"{path} cannot be read ({error}); 'blockvault bisect reset' removes it"
        ) from None


def _from_json(value: dict[str, Any]) -> Bisection:
    marks = tuple((int(seq), Verdict(verdict)) for seq, verdict in value["marks"])
    return Bisection(
        int(value["branch"]),
        str(value["volume"]),
        bool(value["exact"]),
        int(value["good"]),
        int(value["bad"]),
        marks,
    )


def reset(directory: Path) -> None:
    """Forget the search, if there is one."""
    (directory / FILE_NAME).unlink(missing_ok=True)
