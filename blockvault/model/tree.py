"""A volume's content as a Merkle radix tree of fan-out 32.

Blocks are numbered from 0.  A *node* is exactly 1,024 bytes: the ids of its 32 children, without
header.  A node of height 1 (a *leaf*) holds block ids, one of height h+1 the ids of nodes of
height h; the node at position p of height h covers the blocks [p * 32**h, (p + 1) * 32**h).  A
node whose 32 ids are all zero is not a node: its id is ``ZERO_ID``, and so is the root of a volume
of zeros.  Blocks past the end of the volume are zero, so equal content has an equal root.

    root (height 3)  ──  32 × height 2  ──  32 × leaf  ──  32 × block

Nothing here does input or output: nodes come from a ``NodeSource`` and new ones go to a
``NodeSink``.  Every walk fetches up to ``BATCH`` nodes of one height at a time and goes down before
it goes on, so the number of fetches is small and the memory is bounded by BATCH nodes a level,
whatever the size of the volume.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Protocol

from blockvault.errors import BadRequest, Damaged
from blockvault.ids import ID_SIZE, ZERO_ID, object_id

FANOUT = 32
BITS = 5
NODE_SIZE = FANOUT * ID_SIZE
BLANK = bytes(NODE_SIZE)
BATCH = 1024

_NODE = struct.Struct(f"{ID_SIZE}s" * FANOUT)


class NodeSource(Protocol):
    """Where nodes are read: all of the ids are known to exist, none is ``ZERO_ID``."""

    def get_many(self, ids: Sequence[bytes], /) -> Mapping[bytes, bytes]: ...


class NodeSink(Protocol):
    """Where new nodes go; returns the node's id.  Adding a node twice is harmless."""

    def add(self, node: bytes, /) -> bytes: ...


class Scratch:
    """A source and sink in memory over another source: for trees that need not be kept."""

    def __init__(self, nodes: NodeSource | None = None) -> None:
        self.nodes = nodes
        self.added: dict[bytes, bytes] = {}

    def add(self, node: bytes, /) -> bytes:
        oid = object_id(node)
        self.added[oid] = node
        return oid

    def get_many(self, ids: Sequence[bytes], /) -> dict[bytes, bytes]:
        found = {oid: self.added[oid] for oid in ids if oid in self.added}
        missing = [oid for oid in ids if oid not in found]
        if missing and self.nodes is not None:
            found.update(self.nodes.get_many(missing))
        return found


def depth(nblocks: int) -> int:
    """The height of the root of a volume of ``nblocks`` blocks: at least 1."""
    height = 1
    while capacity(height) < nblocks:
        height += 1
    return height


def capacity(height: int) -> int:
    """How many blocks a tree of this height covers."""
    return 1 << (BITS * height)


def blocks_in(size: int, block_size: int) -> int:
    """How many blocks hold ``size`` bytes; the last may be partly filled."""
    return -(-size // block_size)


def children(node: bytes) -> tuple[bytes, ...]:
    """The 32 ids of a node."""
    return _NODE.unpack(node)


def split_ids(ids: bytes) -> list[bytes]:
    """Concatenated ids as a list; the inverse of ``b"".join``."""
    return [ids[i : i + ID_SIZE] for i in range(0, len(ids), ID_SIZE)]


def fetch(nodes: NodeSource, ids: Iterable[bytes]) -> dict[bytes, bytes]:
    """The nodes of ``ids`` in one request, each checked for its size; zeros for ``ZERO_ID``."""
    got = dict.fromkeys(ids, BLANK)
    wanted = [oid for oid in got if oid != ZERO_ID]
    if not wanted:
        return got
    found = nodes.get_many(wanted)
    for oid in wanted:
        node = found.get(oid)
        if node is None:
            raise Damaged(f"tree node {oid.hex()} is missing", kind="object-missing")
        if len(node) != NODE_SIZE:
            raise Damaged(f"object {oid.hex()} is not a tree node", kind="object-damaged")
        got[oid] = node
    return got


# -- reading ---------------------------------------------------------------------------------


def lookup_range(nodes: NodeSource, root: bytes, height: int, first: int, count: int) -> bytes:
    """The concatenated ids of ``count`` blocks from ``first`` on; one fetch per level."""
    stop = first + count
    if first < 0 or count < 0 or stop > capacity(height):
        raise BadRequest(f"blocks {first}..{stop} lie outside of the tree")
    if count == 0:
        return b""
    ids = root
    for level in range(height, 0, -1):
        shift = BITS * (level - 1)
        low, high = first >> shift, ((stop - 1) >> shift) + 1
        held = low >> BITS << BITS
        parents = split_ids(ids)
        got = fetch(nodes, parents)
        joined = b"".join([got[oid] for oid in parents])
        ids = joined[(low - held) * ID_SIZE : (high - held) * ID_SIZE]
    return ids


def lookup_many(
    nodes: NodeSource, root: bytes, height: int, blocks: Iterable[int]
) -> dict[int, bytes]:
    """The ids of any blocks, by block number; one fetch per level."""
    wanted = sorted(set(blocks))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < capacity(height):
        raise BadRequest(f"blocks {wanted[0]}..{wanted[-1]} lie outside of the tree")
    at = {0: root} if wanted else {}
    for level in range(height, 0, -1):
        shift = BITS * (level - 1)
        got = fetch(nodes, at.values())
        at = {p: _child(got[at[p >> BITS]], p) for p in dict.fromkeys(b >> shift for b in wanted)}
    return at


def leaves(
    nodes: NodeSource, root: bytes, height: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield (first block, leaf) in order for the leaves that touch [start, stop) and are not zero.

    Zero subtrees cost nothing.  A leaf is yielded whole even when the range cuts it.
    """
    for position, leaf in walk(nodes, root, height, 1, start, stop):
        yield position << BITS, leaf


def walk(
    nodes: NodeSource,
    root: bytes,
    height: int,
    level: int = 1,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Yield (position, node) of the nodes of height ``level`` over blocks [start, stop)."""
    end = capacity(height) if stop is None else min(stop, capacity(height))
    if root == ZERO_ID or start >= end:
        return iter(())
    return _walk(nodes, [(0, root)], height, level, (start, end))


def _walk(
    nodes: NodeSource,
    items: list[tuple[int, bytes]],
    height: int,
    level: int,
    span: tuple[int, int],
) -> Iterator[tuple[int, bytes]]:
    shift = BITS * (height - 1)
    low, high = span[0] >> shift, ((span[1] - 1) >> shift) + 1
    for at in range(0, len(items), BATCH):
        batch = items[at : at + BATCH]
        got = fetch(nodes, [oid for _, oid in batch])
        if height == level:
            yield from ((position, got[oid]) for position, oid in batch)
            continue
        below = [
            (child, oid)
            for position, parent in batch
            for child, oid in enumerate(children(got[parent]), position << BITS)
            if oid != ZERO_ID and low <= child < high
        ]
        yield from _walk(nodes, below, height - 1, level, span)


class Seen(Protocol):
    """A set of ids, however it is kept."""

    def __contains__(self, oid: object, /) -> bool: ...
    def add(self, oid: bytes, /) -> None: ...


def reachable(
    nodes: NodeSource, roots: Iterable[tuple[bytes, int]], seen: Seen
) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (height, id, node) once for each node under ``roots``, pairs of (root, height).

    ``seen`` is asked first and told of each node, so subtrees that trees share are walked once;
    a parent comes before its children.  Block ids are the children of the nodes of height 1.
    A node's id fixes its height, because leaves name blocks and no block is 1,024 bytes long.
    """
    for root, height in roots:
        yield from _reachable(nodes, [root], height, seen)


def _reachable(
    nodes: NodeSource, ids: Iterable[bytes], height: int, seen: Seen
) -> Iterator[tuple[int, bytes, bytes]]:
    fresh = [oid for oid in dict.fromkeys(ids) if oid != ZERO_ID and oid not in seen]
    for at in range(0, len(fresh), BATCH):
        batch = fresh[at : at + BATCH]
        got = fetch(nodes, batch)
        for oid in batch:
            seen.add(oid)
            yield height, oid, got[oid]
        if height > 1:
            below = chain.from_iterable(children(got[oid]) for oid in batch)
            yield from _reachable(nodes, below, height - 1, seen)


# -- writing ---------------------------------------------------------------------------------


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
        root = _child(fetch(nodes, [root])[root], 0)
    if new_blocks < old_blocks:
        root = update(nodes, sink, root, new, {}, [(new_blocks, capacity(new))])
    return root


def store(sink: NodeSink, node: bytes) -> bytes:
    """Add a node unless it is all zeros; return its id."""
    return ZERO_ID if node == BLANK else sink.add(node)


def _child(node: bytes | bytearray, position: int) -> bytes:
    at = (position % FANOUT) * ID_SIZE
    return bytes(node[at : at + ID_SIZE])


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
            before = [_child(new[p >> BITS], p) for p in below]
            for p, oid in zip(below, self._rewrite(height - 1, below, before), strict=True):
                at = (p % FANOUT) * ID_SIZE
                new[p >> BITS][at : at + ID_SIZE] = oid
        return [
            oid if new[p] == old[oid] else store(self.sink, bytes(new[p]))
            for p, oid in zip(positions, ids, strict=True)
        ]


def _under(ordered: list[int], parents: list[int]) -> list[int]:
    """The positions in ``ordered`` below ``parents``, a run of neighbours among those touched."""
    low = bisect_left(ordered, parents[0] << BITS)
    return ordered[low : bisect_left(ordered, (parents[-1] + 1) << BITS, low)]
