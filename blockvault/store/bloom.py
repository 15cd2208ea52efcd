"""Which objects are certainly not in the index, without looking there.

Most of what a guest writes is new, and each look into the index for it is two calls into LMDB, for
which Python's lock is given up and taken back: beside another busy thread that costs ten times what
it finds.  So the process keeps a Bloom filter with one hash, which the ids are already: a bit for
each value of their first ``BITS`` bits, set where any indexed object has it.

It is filled from the index a part at a time, as look-ups have paid for it.  What this process adds
is told to it before it is committed (``announce``).  What others add it cannot know; but who adds
to the index takes frame numbers, which are never used again.  So the next free number is a clock,
and a clock that others moved empties the filter::

    base <= clock of whoever asks <= next      the filter has all that this one may find, or more
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

import lmdb

from blockvault.errors import Damaged
from blockvault.store.index import ENTRY_SIZE
from blockvault.store.tables import INDEX_PARTS

BITS = 26
"""8 MiB of memory; one id in seven passes for nothing when ten million are indexed."""
ROWS_A_LOOKUP = 16
"""Rows that are read into the filter for each object that was looked up."""
_PARTS_AT_ONCE = 32

_SHIFT = 32 - BITS
_HEADS = struct.Struct(f">I{ENTRY_SIZE - 4}x")


class IndexReader(Protocol):
    """What the filter asks of a transaction."""

    def next_frame(self) -> int: ...
    def index_size(self) -> int: ...
    def index_entries(self, first: int) -> bytes: ...


class Bloom:
    """The filter of one open store; safe to use from several threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._begin(0)

    def _begin(self, clock: int) -> None:
        self._base = self._next = clock
        self._bits: bytearray | None = None
        self._parts = 0
        """Ids that begin with a smaller byte are in the filter."""
        self._credit = 0

    def perhaps(self, reader: IndexReader, ids: Sequence[bytes]) -> list[bytes]:
        """Those of ``ids`` that may be in the index as the reader sees it.

        All the others are not, or have been removed since the reader began.
        """
        try:
            now = reader.next_frame()
        except Damaged:
            return list(ids)
        with self._guard:
            if now > self._next:
                self._begin(now)
            elif now < self._base:
                return list(ids)
            found = self._passing(ids)
            self._credit += len(found) * ROWS_A_LOOKUP
            self._fill(reader)
            return found

    def announce(self, before: int, after: int, ids: Iterable[bytes]) -> None:
        """A commit is being made that adds these objects, and moves the clock so far."""
        with self._guard:
            if before != self._next or self._bits is None:
                self._begin(after)
            else:
                self._next = after
                self._add(map(_number, ids))

    def failed(self) -> None:
        """What was announced did not come to be: others may take its frame numbers."""
        with self._guard:
            self._begin(0)

    def _passing(self, ids: Sequence[bytes]) -> list[bytes]:
        bits, parts = self._bits, self._parts
        if bits is None:
            return list(ids)
        found = []
        for oid in ids:
            number = _number(oid)
            if oid[0] >= parts or bits[number >> 3] >> (number & 7) & 1:
                found.append(oid)
        return found

    def _fill(self, reader: IndexReader) -> None:
        rows = reader.index_size() // INDEX_PARTS + 1
        for _ in range(_PARTS_AT_ONCE):
            if self._credit < rows or self._parts == INDEX_PARTS:
                return
            self._credit -= rows
            try:
                entries = reader.index_entries(self._parts)
            except (lmdb.Error, Damaged):
                return  # what was asked for may stand elsewhere
            self._add(head >> _SHIFT for (head,) in _HEADS.iter_unpack(entries))
            self._parts += 1

    def _add(self, numbers: Iterable[int]) -> None:
        if self._bits is None:
            self._bits = bytearray(1 << BITS >> 3)
        bits = self._bits
        for number in numbers:
            bits[number >> 3] |= 1 << (number & 7)


def _number(oid: bytes) -> int:
    """The first bits of an id."""
    return int.from_bytes(oid[:4]) >> _SHIFT
