"""Who reads a volume in order: where some of them ended, and may go on.

A long read is told from others of its kind by where it begins.  Whoever goes on where another read
ended has that one's trail (``store.runs``), and will want the rest of the leaf he ends in.
"""

from __future__ import annotations

from collections import OrderedDict

from blockvault.store.runs import Trail

_FOLLOWED = 16


class Trails:
    """The trails that ended last, by the leaf in which they did; threads share them."""

    def __init__(self) -> None:
        self._by_leaf: OrderedDict[int, Trail] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_leaf)

    def __contains__(self, leaf: int) -> bool:
        return leaf in self._by_leaf

    def take(self, leaf: int) -> Trail | None:
        """The trail that ended in that leaf, for the one who goes on; others find it no more."""
        return self._by_leaf.pop(leaf, None)

    def ended(self, leaf: int, trail: Trail | None = None) -> None:
        """Somebody has read up to a block of that leaf; without a trail if he left none."""
        self._by_leaf[leaf] = trail or Trail()
        if len(self._by_leaf) > _FOLLOWED:
            self._by_leaf.popitem(last=False)
