"""A volume's content as a Merkle radix tree of fan-out 32.

Blocks are numbered from 0.  A *node* is exactly 1,024 bytes: the ids of its 32 children, without
header.  A node of height 1 (a *leaf*) holds block ids, one of height h+1 the ids of nodes of
height h; the node at position p of height h covers the blocks [p * 32**h, (p + 1) * 32**h).  A
node whose 32 ids are all zero is not a node: its id is ``ZERO_ID``, and so is the root of a volume
of zeros.  Blocks past the end of the volume are zero, so equal content has an equal root.

    root (height 3)  ──  32 × height 2  ──  32 × leaf  ──  32 × block

Nothing here does input or output: nodes come from a ``NodeSource`` and new ones go to a
``NodeSink``; ``update`` and ``builder`` make new trees.  Every walk fetches up to ``BATCH`` nodes
of one height at a time and goes down before it goes on, so the number of fetches is small and the
memory is bounded by BATCH nodes a level, whatever the size of the volume.
"""

from __future__ import annotations

import struct
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
    """Where new nodes go; returns their ids.  Adding a node twice is harmless."""

    def add(self, node: bytes, /) -> bytes: ...
    def add_many(self, nodes: Sequence[bytes], /) -> list[bytes]: ...


class Scratch:
    """A source and sink in memory over another source: for trees that need not be kept."""

    def __init__(self, nodes: NodeSource | None = None) -> None:
        self.nodes = nodes
        self.added: dict[bytes, bytes] = {}

    def add(self, node: bytes, /) -> bytes:
        oid = object_id(node)
        self.added[oid] = node
        return oid

    def add_many(self, nodes: Sequence[bytes], /) -> list[bytes]:
        return [self.add(node) for node in nodes]

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


def child(node: bytes | bytearray, position: int) -> bytes:
    """The id in a node of its child at ``position``, counted over the whole level."""
    at = (position % FANOUT) * ID_SIZE
    return bytes(node[at : at + ID_SIZE])


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


def store(sink: NodeSink, node: bytes) -> bytes:
    """Add a node unless it is all zeros; return its id."""
    return ZERO_ID if node == BLANK else sink.add(node)


def store_many(sink: NodeSink, nodes: Sequence[bytes]) -> list[bytes]:
    """``store`` for many, with one question to the sink."""
    ids = iter(sink.add_many([node for node in nodes if node != BLANK]))
    return [ZERO_ID if node == BLANK else next(ids) for node in nodes]


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


def leaves(
    nodes: NodeSource, root: bytes, height: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield (first block, leaf) in order for the leaves that touch [start, stop) and are not zero.

    Zero subtrees cost nothing.  A leaf is yielded whole even when the range cuts it.
    """
    for position, leaf in walk(nodes, root, height, 1, start, stop):
        yield position << BITS, leaf


def leaf_ids(
    nodes: NodeSource, root: bytes, height: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield (first block, id) in order for the leaves that touch [start, stop) and are not zero.

    None of them is read.
    """
    end = capacity(height) if stop is None else stop
    if height == 1:
        yield from [(0, root)] if root != ZERO_ID and start < min(end, FANOUT) else []
        return
    low, high = start >> BITS, -(-end // FANOUT)
    for position, node in walk(nodes, root, height, 2, start, stop):
        for number, oid in enumerate(children(node), position << BITS):
            if oid != ZERO_ID and low <= number < high:
                yield number << BITS, oid


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
