"""New roots from old ones: blocks replaced, runs cleared, volumes resized.

An update writes each node on the way to a change once, from the bottom up, and shares the rest with
the old tree.  Clearing a run replaces the largest subtrees that it covers, so a terabyte costs a
few edits per level.  The walk takes ``BATCH`` nodes of a level at a time, as those of ``tree`` do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import chain

from blockvault.errors import BadRequest
from blockvault.ids import ID_SIZE, ZERO_ID
from blockvault.model.tree import (
    BATCH,
    BITS,
    BLANK,
    FANOUT,
    NodeSink,
    NodeSource,
    capacity,
    child,
    depth,
    fetch,
    store,
    store_many,
)


def update(
    nodes: NodeSource,
    sink: NodeSink,
    root: bytes,
    height: int,
    changes: Mapping[int, bytes],
    cleared: Iterable[tuple[int, int]] = (),
) -> bytes:
    """Return the root after the runs ``cleared`` ([start, stop) of blocks) became zero and then
    each block of ``changes`` got its id.  Subtrees without change are neither read nor written.
    """
    job = _Update(nodes, sink, height)
    for start, stop in cleared:
        job.clear(start, stop)
    job.edits[0].update(changes)
    return job.run(root)


def resize(
    nodes: NodeSource, sink: NodeSink, root: bytes, old_blocks: int, new_blocks: int
) -> bytes:
    """Return the root for ``new_blocks`` blocks: levels are added or cut, lost blocks cleared.

    The tail of a last block that shrinks is data, not structure: the caller rewrites that block.
    """
    old, new = depth(old_blocks), depth(new_blocks)
    for _ in range(old, new):
        root = store(sink, root + BLANK[ID_SIZE:])
    for _ in range(new, old):
        root = child(fetch(nodes, [root])[root], 0)
    if new_blocks < old_blocks:
        root = update(nodes, sink, root, new, {}, [(new_blocks, capacity(new))])
    return root


class _Update:
    """One ``update``: what to set at each level, and which nodes that touches.

    ``edits[h]`` maps the position of a subtree of height h (a block for h = 0) to the id it gets.
    A cleared run becomes few edits, since it is cut into the largest subtrees that it covers.
    """

    def __init__(self, nodes: NodeSource, sink: NodeSink, height: int) -> None:
        self.nodes, self.sink, self.height = nodes, sink, height
        self.edits: list[dict[int, bytes]] = [{} for _ in range(height + 1)]
        self.edited: list[list[int]] = []
        self.touched: list[list[int]] = [[]]

    def clear(self, start: int, stop: int) -> None:
        start, stop = max(start, 0), min(stop, capacity(self.height))
        for edits in self.edits:
            while start < stop and (start % FANOUT or edits is self.edits[-1]):
                edits[start] = ZERO_ID
                start += 1
            while start < stop and stop % FANOUT:
                stop -= 1
                edits[stop] = ZERO_ID
            if start >= stop:
                return
            start, stop = start >> BITS, stop >> BITS

    def run(self, root: bytes) -> bytes:
        root = self.edits[self.height].get(0, root)
        self.edited = [sorted(edits) for edits in self.edits]
        blocks = self.edited[0]
        if blocks and not 0 <= blocks[0] <= blocks[-1] < capacity(self.height):
            raise BadRequest(f"blocks {blocks[0]}..{blocks[-1]} lie outside of the tree")
        for level in range(self.height):
            above = {p >> BITS for p in chain(self.edits[level], self.touched[level])}
            self.touched.append(sorted(above))
        return self._rewrite(self.height, [0], [root])[0] if self.touched[self.height] else root

    def _rewrite(self, height: int, positions: list[int], ids: list[bytes]) -> list[bytes]:
        """The new ids of the nodes at ``positions``, a contiguous part of ``touched[height]``."""
        out: list[bytes] = []
        for at in range(0, len(positions), BATCH):
            out += self._rewrite_batch(height, positions[at : at + BATCH], ids[at : at + BATCH])
        return out

    def _rewrite_batch(self, height: int, positions: list[int], ids: list[bytes]) -> list[bytes]:
        old = fetch(self.nodes, ids)
        new = {p: bytearray(old[oid]) for p, oid in zip(positions, ids, strict=True)}
        edits = self.edits[height - 1]
        for p in _under(self.edited[height - 1], positions):
            at = (p % FANOUT) * ID_SIZE
            new[p >> BITS][at : at + ID_SIZE] = edits[p]
        below = _under(self.touched[height - 1], positions)
        if below:
            before = [child(new[p >> BITS], p) for p in below]
            for p, oid in zip(below, self._rewrite(height - 1, below, before), strict=True):
                at = (p % FANOUT) * ID_SIZE
                new[p >> BITS][at : at + ID_SIZE] = oid
        changed = [
            (at, bytes(new[p]))
            for at, (p, oid) in enumerate(zip(positions, ids, strict=True))
            if new[p] != old[oid]
        ]
        made = list(ids)
        stored = store_many(self.sink, [node for _, node in changed])
        for (at, _), oid in zip(changed, stored, strict=True):
            made[at] = oid
        return made


def _under(ordered: list[int], parents: list[int]) -> list[int]:
    """The positions in ``ordered`` below ``parents``, a run of neighbours among those touched."""
    low = bisect_left(ordered, parents[0] << BITS)
    return ordered[low : bisect_left(ordered, (parents[-1] + 1) << BITS, low)]
