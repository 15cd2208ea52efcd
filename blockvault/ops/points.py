"""The points of a branch's line that can be told apart, from coarse to fine.

A line is a branch and those it came from.  Points are events of it, and are listed between two
others, so that few records of the log are read, however long the branch is:

    snapshots   from the waypoints
    barriers    the last of each record, from the trail; then the others, out of a record or two
    events      the last of each record, from the trail; then the others
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from blockvault.model import events, projections
from blockvault.ops import positions

if TYPE_CHECKING:
    from blockvault.model.projected import TrailRow
    from blockvault.store.types import Reader
    from blockvault.vault import Vault

Lister = Callable[["Vault", int, int, int], list[int]]
"""(vault, branch, low, high) -> points of the branch, at least those with low < point < high."""


class Stretch(NamedTuple):
    """A part of a line: a branch's events up to ``last``."""

    branch: int
    last: int


def line(vault: Vault, branch: int) -> list[Stretch]:
    """A branch and those it came from, newest first."""
    with vault.read() as reader:
        return list(_line(reader, branch))


def _line(reader: Reader, branch: int) -> Iterator[Stretch]:
    """The branch, the one it came from up to that point, and so on."""
    row = projections.get_branch(reader, branch)
    last = row.last_seq
    while True:
        yield Stretch(branch, last)
        branch, last = row.source, min(last, row.source_seq)
        if not branch or not projections.has_branch(reader, branch):
            return
        row = projections.get_branch(reader, branch)


def _snapshots(vault: Vault, branch: int, low: int, high: int) -> list[int]:
    with vault.read() as reader:
        rows = projections.waypoints(reader, branch, high, start=low)
        return [seq for seq, row in rows if row.snapshot is not None]


def _ends(field: str, codes: frozenset[int]) -> tuple[Lister, Lister]:
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


def _trail(reader: Reader, branch: int, low: int, high: int) -> Iterator[tuple[int, TrailRow]]:
    """Trail rows of the records that can hold events with low < seq < high."""
    before = next(projections.trail(reader, branch, low), None)
    return projections.trail(reader, branch, high, start=before[0] if before else low)


def _in_record(vault: Vault, branch: int, first: int, codes: frozenset[int]) -> Iterator[int]:
    """The branch's events of these kinds in one record."""
    with vault.read() as reader:
        record = reader.record(first)
    if record is None or record.pruned:
        return
    for seq, _ in positions.rows_in(record, branch, codes):
        yield seq


_BARRIERS = _ends("barrier_seq", events.POINT_CODES)
_EVENTS = _ends("last_seq", events.CONTENT_CODES)

LEVELS: list[tuple[str, Lister]] = [
    ("snapshot", _snapshots),
    ("barrier", _BARRIERS[0]),
    ("barrier", _BARRIERS[1]),
    ("event", _EVENTS[0]),
    ("event", _EVENTS[1]),
]
