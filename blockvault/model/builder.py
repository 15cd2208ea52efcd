"""A tree built from its leaves in order: how an import turns a stream of blocks into a root.

The builder keeps at most 31 ids per level, so memory does not grow with the volume, and holes of
any size cost a few steps.  Given the tree of an earlier state it tells for each leaf whether that
state has the same leaf in the same place; then all 32 blocks are known to be stored and the caller
need not ask for any of them.  Only nodes of height 2 of the earlier tree are read for that: a leaf
is compared by its id.
"""

from __future__ import annotations

from collections.abc import Iterator

from blockvault.errors import BadRequest
from blockvault.ids import ID_SIZE, ZERO_ID, object_id
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
    """Feed ``add`` and ``skip`` with the leaves from the first on, then ``finish``."""

    def __init__(
        self,
        sink: NodeSink,
        nblocks: int,
        *,
        nodes: NodeSource | None = None,
        parent: bytes = ZERO_ID,
        parent_blocks: int = 0,
    ) -> None:
        """``parent`` is the root of an earlier state of ``parent_blocks`` blocks, in ``nodes``."""
        self.height = depth(nblocks)
        self.total = blocks_in(nblocks, FANOUT)
        self.done = 0
        self._sink = sink
        self._partial: list[list[bytes]] = [[] for _ in range(self.height + 1)]
        self._earlier = _Earlier(nodes, parent, depth(parent_blocks))

    def add(self, leaf: bytes) -> bool:
        """Append the ids of the next 32 blocks (only the last leaf may have fewer).

        True if the earlier state has the same leaf here; then nothing was stored.
        """
        if len(leaf) != NODE_SIZE:
            leaf = self._padded(leaf)
        self._expect(1)
        before = self._earlier.leaf_id(self.done)
        self.done += 1
        if leaf == BLANK:
            self._push(1, ZERO_ID)
            return before == ZERO_ID
        same = before != ZERO_ID and object_id(leaf) == before
        self._push(1, before if same else self._sink.add(leaf))
        return same

    @property
    def earlier(self) -> bytes:
        """The id of the leaf that the earlier state has next; ``ZERO_ID`` if it is zeros there."""
        return self._earlier.leaf_id(self.done)

    def keep(self) -> None:
        """Append the leaf that the earlier state has next."""
        self._expect(1)
        before = self.earlier
        self.done += 1
        self._push(1, before)

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


class _Earlier:
    """The leaf ids of an earlier tree, asked for in ascending order."""

    def __init__(self, nodes: NodeSource | None, root: bytes, height: int) -> None:
        self._at, self._node = -1, BLANK
        self._rest: Iterator[tuple[int, bytes]] = iter(())
        if nodes is None or root == ZERO_ID:
            self._at = -2
        elif height == 1:
            self._at, self._node = 0, root + BLANK[ID_SIZE:]
        else:
            self._rest = walk(nodes, root, height, level=2)

    def leaf_id(self, leaf: int) -> bytes:
        if self._at == -2:
            return ZERO_ID
        while self._at < leaf >> BITS:
            self._at, self._node = next(self._rest, (1 << 62, BLANK))
        if self._at != leaf >> BITS:
            return ZERO_ID
        at = (leaf % FANOUT) * ID_SIZE
        return self._node[at : at + ID_SIZE]
