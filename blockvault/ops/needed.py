"""Are all these objects there?  Asked for millions of ids, without a lookup for each.

Ids are gathered by their first byte, as the index keeps them, and now and then held against all of
the index at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

from blockvault.ids import ID_SIZE, ZERO_ID
from blockvault.store.index import ENTRY_SIZE

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
            self._look()

    def missing(self) -> list[bytes]:
        """What is missing of all that was added."""
        self._look()
        return sorted(self._missing - {ZERO_ID})

    def _look(self) -> None:
        for first, ids in enumerate(self._gathered):
            if ids:
                with self._vault.read() as reader:
                    found = reader.index_entries(first)
                ids.difference_update(chain.from_iterable(_ENTRIES.iter_unpack(found)))
                self._missing |= ids
        self._begin()
