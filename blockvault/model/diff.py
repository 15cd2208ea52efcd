"""What differs between two states of a volume, at a cost of what differs.

Two trees are walked side by side from their roots; where two ids are equal, everything below is,
and nothing of it is read.  A state with an overlay first gets a tree in memory, at a cost of the
size of the overlay.  States of different sizes are compared as if the smaller went on in zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import ne
from typing import NamedTuple

from blockvault.model.extents import Run, merged
from blockvault.model.overlay import Overlay
from blockvault.model.tree import (
    BATCH,
    BITS,
    NodeSource,
    Scratch,
    blocks_in,
    children,
    depth,
    fetch,
)
from blockvault.model.update import resize

_Pair = tuple[int, bytes, bytes]
"""A position, and the two different ids that the states have there."""


class Side(NamedTuple):
    """One state of a volume: ``size`` bytes under ``root``, and what was written since."""

    size: int
    root: bytes
    overlay: Overlay | None = None


def changed_bytes(
    nodes: NodeSource, a: Side, b: Side, block_size: int
) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what differs, in order, in whole blocks cut at the larger size."""
    end = max(a.size, b.size)
    for run in changed_blocks(nodes, a, b, block_size):
        offset = run.start * block_size
        yield offset, min(run.stop * block_size, end) - offset


def changed_blocks(nodes: NodeSource, a: Side, b: Side, block_size: int) -> Iterator[Run]:
    """Yield the runs of blocks that differ, in order and merged; ``zero`` says nothing here."""
    scratch = Scratch(nodes)
    count = max(blocks_in(side.size, block_size) for side in (a, b))
    height = depth(count)
    roots = [_root(scratch, side, block_size, count) for side in (a, b)]
    if roots[0] == roots[1]:
        return iter(())
    return merged(_changed(scratch, [(0, roots[0], roots[1])], height))


def _root(scratch: Scratch, side: Side, block_size: int, count: int) -> bytes:
    """The root of a state as a tree over ``count`` blocks, at least as many as it has."""
    blocks, root = blocks_in(side.size, block_size), side.root
    if side.overlay is not None and len(side.overlay):
        root = side.overlay.fold(scratch, scratch, root, depth(blocks))
    return resize(scratch, scratch, root, blocks, count)


def _changed(nodes: NodeSource, pairs: list[_Pair], height: int) -> Iterator[Run]:
    for at in range(0, len(pairs), BATCH):
        batch = pairs[at : at + BATCH]
        got = fetch(nodes, [oid for _, *ids in batch for oid in ids])
        if height == 1:
            for position, a, b in batch:
                yield from _leaf_runs(position << BITS, got[a], got[b])
            continue
        below = [
            (child, x, y)
            for position, a, b in batch
            for child, (x, y) in enumerate(
                zip(children(got[a]), children(got[b]), strict=True), position << BITS
            )
            if x != y
        ]
        yield from _changed(nodes, below, height - 1)


def _leaf_runs(first: int, a: bytes, b: bytes) -> Iterator[Run]:
    differs = bytes(map(ne, children(a), children(b)))
    start = differs.find(1)
    while start >= 0:
        stop = differs.find(0, start)
        stop = len(differs) if stop < 0 else stop
        yield Run(first + start, first + stop)
        start = differs.find(1, stop)
