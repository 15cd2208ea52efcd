"""Runs: sorted, disjoint, half-open ranges, each of data or of zeros.

All functions take and give runs in ascending order, lazily, so that a volume of any size costs
only the runs it has.  The unit, blocks or bytes, is the caller's.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import groupby, tee
from typing import NamedTuple

from blockvault.ids import ZERO_ID
from blockvault.model import tree


class Run(NamedTuple):
    """[start, stop), which reads as zeros or holds data."""

    start: int
    stop: int
    zero: bool = False


def merged(runs: Iterable[Run]) -> Iterator[Run]:
    """Join neighbours that touch and are alike; drop empty runs."""
    start = stop = 0
    kind = False
    for run in runs:
        if run[0] == stop and run[2] == kind:
            stop = run[1]
            continue
        if start < stop:
            yield Run(start, stop, kind)
        start, stop, kind = run
    if start < stop:
        yield Run(start, stop, kind)


def clipped(runs: Iterable[Run], start: int, stop: int) -> Iterator[Run]:
    """The parts of ``runs`` inside [start, stop)."""
    for run in runs:
        if run.start >= stop:
            return
        low, high = max(run.start, start), min(run.stop, stop)
        if low < high:
            yield Run(low, high, run.zero)


def subtracted(runs: Iterable[Run], holes: Iterable[Run]) -> Iterator[Run]:
    """The parts of ``runs`` that no hole covers; the kind of a hole does not matter."""
    rest = iter(holes)
    hole = next(rest, None)
    for start, stop, zero in runs:
        while hole is not None and hole.start < stop:
            if start < hole.start:
                yield Run(start, hole.start, zero)
            start = max(start, hole.stop)
            if start >= stop:
                break
            hole = next(rest, None)
        if start < stop:
            yield Run(start, stop, zero)


def overlaid(lower: Iterable[Run], upper: Iterable[Run]) -> Iterator[Run]:
    """What ``upper`` says where it says anything, else what ``lower`` says; both may have gaps."""
    over, holes = tee(upper)
    return heapq.merge(subtracted(lower, holes), over)


union = overlaid
"""Layers that together speak for part of a range; the second wins where both do."""


def of_tree(
    nodes: tree.NodeSource, root: bytes, height: int, start: int, stop: int
) -> Iterator[Run]:
    """Data and zero runs that together cover the blocks [start, stop); neighbours may be alike."""
    at = start
    for first, leaf in tree.leaves(nodes, root, height, start, stop):
        if at < first:
            yield Run(at, first, True)
        at = min(first + tree.FANOUT, stop)
        low = max(first, start)
        zeros = map(ZERO_ID.__eq__, tree.children(leaf)[low - first : at - first])
        for zero, alike in groupby(zeros):
            count = len(list(alike))
            yield Run(low, low + count, zero)
            low += count
    if at < stop:
        yield Run(at, stop, True)


def of_state(
    nodes: tree.NodeSource,
    root: bytes,
    height: int,
    upper: Iterable[Run],
    start: int,
    stop: int,
) -> Iterator[Run]:
    """The merged data and zero runs of a tree under the runs of an overlay (``Overlay.runs``)."""
    return merged(overlaid(of_tree(nodes, root, height, start, stop), upper))
