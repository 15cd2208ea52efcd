"""Are all these objects there?  Asked for millions of ids, without a lookup for each.

Ids are gathered by their first byte, as the index keeps them, and now and then held against all
that it has of that byte; few are asked for one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

from blockvault.ids import ID_SIZE, ZERO_ID
from blockvault.store import tables
from blockvault.store.index import ENTRY_SIZE, worth_a_walk

if TYPE_CHECKING:
    from blockvault.vault import Vault

_ENTRIES = struct.Struct(f"{ID_SIZE}s{ENTRY_SIZE - ID_SIZE}x")
_AT_A_TIME = 1 << 20
"""About 100 bytes of memory each."""


class Needed:
    """Objects that something names; ``missing`` are those that are not indexed."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._missing: set[bytes] = set()
        self._begin()

    def _begin(self) -> None:
        self._gathered: list[set[bytes]] = [set() for _ in range(256)]
        self._count = 0

    def add(self, ids: Iterable[bytes]) -> None:
        gathered = self._gathered
        for oid in ids:
            gathered[oid[0]].add(oid)
            self._count += 1
        if self._count >= _AT_A_TIME:
            # Many are added again and again: of a leaf that one write changed, all but one.
            self._count = sum(map(len, gathered))
            if self._count >= _AT_A_TIME // 2:
                self._look()

    def missing(self) -> list[bytes]:
        """What is missing of all that was added."""
        self._look()
        return sorted(self._missing)

    def _look(self) -> None:
        for first, ids in enumerate(self._gathered):
            ids.discard(ZERO_ID)
            self._missing |= self._absent(first, ids)
        self._begin()

    def _absent(self, first: int, ids: set[bytes]) -> set[bytes]:
        with self._vault.read() as reader:
            if not worth_a_walk(len(ids), reader.index_size() // tables.INDEX_PARTS):
                ids = ids - reader.indexed(list(ids))
            # A row may be hidden from who asks for it by a damaged key above: it is there.
            found = reader.index_entries(first) if ids else b""
        return ids.difference(chain.from_iterable(_ENTRIES.iter_unpack(found)))
