"""Ids of very many objects that wait to be looked up, in 32 bytes each.

They are kept by their first byte, as the index is: so many at a time are held against the rows of
the index with that byte, and the index is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Collection
from struct import Struct

from blockvault.ids import ID_SIZE, ZERO_ID
from blockvault.store import tables

_ID = Struct(f"{ID_SIZE}s")


class Gathered:
    """Ids by their first byte; one that is added twice takes its room twice."""

    def __init__(self) -> None:
        self._parts = [bytearray() for _ in range(tables.INDEX_PARTS)]
        self._count = 0

    def add(self, ids: Collection[bytes]) -> None:
        parts = self._parts
        for oid in ids:
            parts[oid[0]] += oid
        self._count += len(ids)

    def __len__(self) -> int:
        return self._count

    def part(self, first: int) -> set[bytes]:
        """The ids that begin with this byte, but for that of zeros, which is of no object."""
        found = {oid for (oid,) in _ID.iter_unpack(self._parts[first])}
        found.discard(ZERO_ID)
        return found

    def clear(self) -> None:
        for part in self._parts:
            part.clear()
        self._count = 0
