"""A tree built from its leaves in order: how an import turns a stream of blocks into a root.

The builder keeps at most 31 ids per level, so memory does not grow with the volume, and holes of
any size cost a few steps.  A leaf that an earlier state has too is put by its id: that its 32
blocks are stored is known then, and nobody need ask for any of them (``EarlierLeaves``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blockvault.errors import BadRequest, Damaged
from blockvault.ids import ID_SIZE, ZERO_ID
from blockvault.model.tree import (
    BITS,
    BLANK,
    FANOUT,
    NODE_SIZE,
    NodeSink,
    NodeSource,
    blocks_in,
    depth,
    store,
    walk,
)


class Builder:
    """Feed ``add``, ``put`` and ``skip`` with the leaves from the first on, then ``finish``."""

    def __init__(self, sink: NodeSink, nblocks: int) -> None:
        self.height = depth(nblocks)
        self.total = blocks_in(nblocks, FANOUT)
        self.done = 0
        self._sink = sink
        self._partial: list[list[bytes]] = [[] for _ in range(self.height + 1)]

    def add(self, leaf: bytes) -> None:
        """Append the ids of the next 32 blocks (only the last leaf may have fewer)."""
        if len(leaf) != NODE_SIZE:
            leaf = self._padded(leaf)
        self._expect(1)
        self.done += 1
        self._push(1, store(self._sink, leaf))

    def put(self, oid: bytes) -> None:
        """Append a leaf that is stored, or ``ZERO_ID``."""
        self._expect(1)
        self.done += 1
        self._push(1, oid)

    def skip(self, leaves: int) -> None:
        """Append ``leaves`` leaves of zeros."""
        self._expect(leaves)
        self.done += leaves
        self._skip(1, leaves)

    def finish(self) -> bytes:
        """The root; leaves not given are zero."""
        self.skip(self.total - self.done)
        for level in range(1, self.height):
            if self._partial[level]:
                self._close(level)
        top = self._partial[self.height]
        return top[0] if top else ZERO_ID

    def _padded(self, leaf: bytes) -> bytes:
        if self.done != self.total - 1 or len(leaf) > NODE_SIZE or len(leaf) % ID_SIZE:
            raise BadRequest(f"leaf {self.done} has {len(leaf)} bytes of ids")
        return leaf + BLANK[len(leaf) :]

    def _expect(self, leaves: int) -> None:
        if leaves < 0 or self.done + leaves > self.total:
            raise BadRequest(f"the tree has only {self.total} leaves")

    def _push(self, level: int, oid: bytes) -> None:
        partial = self._partial[level]
        partial.append(oid)
        if len(partial) == FANOUT and level < self.height:
            self._close(level)

    def _close(self, level: int) -> None:
        node = b"".join(self._partial[level])
        self._partial[level].clear()
        self._push(level + 1, store(self._sink, node + BLANK[len(node) :]))

    def _skip(self, level: int, count: int) -> None:
        """Append ``count`` zero subtrees of height ``level``, whole parents at a time."""
        while count and self._partial[level]:
            self._push(level, ZERO_ID)
            count -= 1
        whole, rest = divmod(count, FANOUT) if level < self.height else (0, count)
        if whole:
            self._skip(level + 1, whole)
        for _ in range(rest):
            self._push(level, ZERO_ID)


class EarlierLeaves:
    """The leaf ids of an earlier tree, asked for in ascending order.

    Only nodes of height 2 are read for that.  Of what lies behind one that is missing nothing is
    known: who takes an image in anew is to store that again, and the node with it.
    """

    def __init__(self, nodes: NodeSource, root: bytes, nblocks: int) -> None:
        self._at, self._node = -1, BLANK
        self._rest: Iterator[tuple[int, bytes]] = iter(())
        if root == ZERO_ID:
            return
        if depth(nblocks) == 1:
            self._at, self._node = 0, root + BLANK[ID_SIZE:]
        else:
            self._rest = walk(nodes, root, depth(nblocks), level=2)

    def ids(self, leaves: Sequence[int]) -> list[bytes]:
        """The ids of leaves of these numbers; ``ZERO_ID`` for those that are zeros."""
        return [self._id(leaf) for leaf in leaves]

    def _id(self, leaf: int) -> bytes:
        while self._at < leaf >> BITS:
            self._at, self._node = self._next()
        if self._at != leaf >> BITS:
            return ZERO_ID
        at = (leaf % FANOUT) * ID_SIZE
        return self._node[at : at + ID_SIZE]

    def _next(self) -> tuple[int, bytes]:
        try:
            return next(self._rest, _END)
        except Damaged as error:
            if error.reason != "object-missing":
                raise
            return _END


_END = (1 << 62, BLANK)
"""Behind the last node of any tree."""
