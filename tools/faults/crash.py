"""Crash states: what a power cut may leave behind, enumerated from one recorded trace.

A ``Cut`` says where the power failed (after ``ops[:at]``, with ``ops[at]`` in flight if it says so)
and which pending operations the platter kept.  ``enumerate_cuts`` spreads the wanted number evenly
over the trace: at each place nothing kept, everything kept, and random subsets with torn writes.
It is a function of the trace and a seed, so that a case is repeated by its number.

A cut always lies just before the next operation, never between a sync and what the program said
on the strength of it: so ``promises`` are the strongest that hold for that state of the disk.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import NamedTuple

from tools.faults.disk import (
    WHOLE,
    Disk,
    Entry,
    Image,
    Mark,
    Op,
    Punch,
    Write,
    directories_of,
    sectors,
)


class Cut(NamedTuple):
    """Power fails after ``ops[:at]``; ``kept``: position in ``Disk.pending`` → sector mask."""

    at: int
    in_flight: bool
    kept: tuple[tuple[int, int], ...]


def enumerate_cuts(ops: Sequence[Op], wanted: int, seed: int, start: int = 0) -> list[Cut]:
    """About ``wanted`` distinct cuts at or after ``ops[start]``, in the order of the trace."""
    rng, promised = random.Random(seed), _marks_before(ops)
    places = [p for p in range(start, len(ops)) if not isinstance(ops[p], Mark)] + [len(ops)]
    cuts: list[Cut] = []
    seen: set[object] = set()
    disk, done = Disk(), 0
    for number, place in enumerate(places):
        for op in ops[done:place]:
            disk.apply(op)
        done = place
        share = (wanted - len(cuts)) / (len(places) - number)
        goal = len(cuts) + int(share) + (rng.random() < share % 1)
        for cut in islice(_cuts_at(ops, place, disk, rng), int(30 * share) + 4):
            key = (disk.settled, cut.in_flight, cut.kept, promised[place])
            if len(cuts) < goal and key not in seen:
                seen.add(key)
                cuts.append(cut)
    return cuts


def promises(ops: Sequence[Op], cut: Cut) -> list[str]:
    """What the program had said before the power failed, in order."""
    return [op.text for op in ops[: cut.at] if isinstance(op, Mark)]


class Replay:
    """Images of cuts of one trace; cheapest when they are asked for in the order of the trace."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self._ops = ops
        self._disk, self._done = Disk(), 0

    def image(self, cut: Cut) -> Image:
        if cut.at < self._done:
            self._disk, self._done = Disk(), 0
        for op in self._ops[self._done : cut.at]:
            self._disk.apply(op)
        self._done = cut.at
        if not cut.in_flight:
            return self._disk.survivors(dict(cut.kept))
        with_op = Disk(self._disk.base, Image(), list(self._disk.pending))
        with_op.begin(self._ops[cut.at])
        return with_op.survivors(dict(cut.kept))


def choose(pending: Sequence[Entry], rng: random.Random) -> dict[int, int]:
    """A random outcome of a power cut: position → sector mask of what reached the platter."""
    density = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    tearing = rng.choice((0.0, 0.3))
    kept: dict[int, int] = {}
    stuck: set[int] = set()  # directories that lost a name change: later ones cannot survive
    for position, entry in enumerate(pending):
        touched = directories_of(entry.op)
        if rng.random() < density and not stuck & touched:
            torn = isinstance(entry.op, Write | Punch) and rng.random() < tearing
            kept[position] = _tear(entry.op, rng) if torn else WHOLE
        else:
            stuck |= touched
    return kept


def _cuts_at(ops: Sequence[Op], place: int, disk: Disk, rng: random.Random) -> Iterator[Cut]:
    """Endless: the plain outcomes first, then random ones."""
    outcomes = [(False, list(disk.pending))]
    if place < len(ops) and _tears(ops[place]):
        outcomes.append((True, [*disk.pending, Entry(ops[place], must=False)]))
    for in_flight, _ in outcomes:
        yield Cut(place, in_flight, ())
    for in_flight, pending in outcomes:
        yield Cut(place, in_flight, tuple((n, WHOLE) for n in range(len(pending))))
    while True:
        in_flight, pending = rng.choice(outcomes)
        yield Cut(place, in_flight, tuple(choose(pending, rng).items()))


def _tear(op: Op, rng: random.Random) -> int:
    assert isinstance(op, Write | Punch)
    count = sectors(op.offset, len(op.data))
    if rng.random() < 0.5:  # the usual tear: the first sectors made it
        return (1 << rng.randrange(count + 1)) - 1
    return rng.getrandbits(count)


def _tears(op: Op) -> bool:
    """Only a durable write makes its own in-flight states; others are pending one place later."""
    return isinstance(op, Write) and op.durable


def _marks_before(ops: Sequence[Op]) -> list[int]:
    """For every place, how many promises stand before it."""
    return [0, *accumulate(isinstance(op, Mark) for op in ops)]
