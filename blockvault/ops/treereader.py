"""One tree as a map from block number to id, with a bounded cache of its leaves.

Safe to use from several threads: a root never changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from blockvault.ids import ID_SIZE
from blockvault.model import tree
from blockvault.model.overlay import Overlay
from blockvault.store.athand import Telling

if TYPE_CHECKING:
    from blockvault.store.objects import ObjectReader

_LEAF_CACHE = 32768
"""Leaves kept per volume, about 1.1 KiB each: 36 MiB, which maps 4 GiB of 4 KiB blocks."""
_TOLD_AT_ONCE = 2
"""Parents of leaves that are told of before a small read: half a millisecond each."""


class TreeReader:
    """Block ids of one immutable tree.

    If the cache has room for all of its leaves, those of the same parent are loaded together, and
    after some hundred small reads the objects' reader has been told of every block of the tree.
    """

    def __init__(self, objects: ObjectReader, blocks: int, root: bytes) -> None:
        self.objects = objects
        self.height = tree.depth(blocks)
        self.root = root
        self._blocks = blocks
        self._leaves: dict[int, bytes] = {}
        self._count = -(-blocks // tree.FANOUT)
        small = self._count <= _LEAF_CACHE
        self._together = tree.FANOUT if small else 1
        self._telling = Telling(-(-self._count // tree.FANOUT) if small else None)

    def rebased(self, root: bytes, overlay: Overlay) -> TreeReader:
        """The reader of the root that ``overlay`` made of this one; untouched leaves are kept."""
        later = TreeReader(self.objects, self._blocks, root)
        later._telling = self._telling
        if not overlay.cleared:
            later._leaves = dict(self._leaves)
            for leaf in overlay.leaves:
                later._leaves.pop(leaf, None)
        return later

    def block_id(self, block: int) -> bytes:
        leaf = self._leaves.get(block // tree.FANOUT)
        if leaf is None:
            leaf = self._load(block // tree.FANOUT)
        at = block % tree.FANOUT * ID_SIZE
        return leaf[at : at + ID_SIZE]

    def block_ids(self, first: int, stop: int) -> list[bytes]:
        """Ids of the blocks ``first`` to ``stop``; ZERO_ID where there is nothing."""
        low, high = first // tree.FANOUT, -(-stop // tree.FANOUT)
        leaves = [self._leaves.get(leaf, b"") for leaf in range(low, high)]
        if b"" in leaves:
            # More for who goes on behind: those of the same parent were written together.
            more = high - low > 1 or self._together > 1
            ahead = -(-high // tree.FANOUT) * tree.FANOUT if more else high
            leaves = self._load_many(low, min(ahead, self._count))[: high - low]
        ids = b"".join(leaves)
        skip = (first - low * tree.FANOUT) * ID_SIZE
        return [
            ids[at : at + ID_SIZE] for at in range(skip, skip + (stop - first) * ID_SIZE, ID_SIZE)
        ]

    def _load(self, number: int) -> bytes:
        """A leaf that a small read wants, and those that are loaded with it."""
        low = number // self._together * self._together
        return self._load_many(low, min(low + self._together, self._count))[number - low]

    def tell(self) -> None:
        """Tell of a part of the tree more, before a small read; long ones need none of it."""
        telling = self._telling
        if telling.done or not self.objects.listen(telling) or telling.total is None:
            return
        for parent in telling.untold(_TOLD_AT_ONCE):
            first = parent * tree.FANOUT
            stop = min(first + tree.FANOUT, self._count)
            leaves = [self._leaves.get(leaf, b"") for leaf in range(first, stop)]
            if b"" in leaves:
                leaves = self._load_many(first, stop)
            self.objects.expect(leaves)
            telling.told.add(parent)

    def _load_many(self, low: int, high: int) -> list[bytes]:
        """The leaves ``low`` to ``high`` with one fetch a level."""
        count = (high - low) * tree.FANOUT
        ids = tree.lookup_range(self.objects, self.root, self.height, low * tree.FANOUT, count)
        found = {
            low + at: ids[at * tree.NODE_SIZE : (at + 1) * tree.NODE_SIZE]
            for at in range(high - low)
        }
        self._keep(found)
        return list(found.values())

    def _keep(self, leaves: Mapping[int, bytes]) -> None:
        if len(self._leaves) + len(leaves) > _LEAF_CACHE:
            self._leaves.clear()
        self._leaves.update(leaves)
