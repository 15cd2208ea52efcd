"""Which objects are certainly not in the index, without looking there.

Most of what a guest writes is new, and each look into the index for it is two calls into LMDB, for
which Python's lock is given up and taken back: beside another busy thread that costs ten times what
it finds.  So the process keeps a Bloom filter with one hash, which the ids are already: a bit for
each value of their first ``BITS`` bits, set where any indexed object has it.

It is filled from the index a part at a time, as look-ups have paid for it, or at once from what an
earlier process left (``bloomfile``).  What this process adds is told to it before it is committed
(``announce``).  What others add it has to notice: who adds to the index takes frame numbers, which
are never used again.  So the next free number is a clock, and where it is ahead, the filter takes
what the new frames hold; if they are many, or not all there, it begins anew::

    base <= clock of whoever asks <= next      the filter has all that this one may find, or more
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import lmdb

from blockvault.encoding import pack, unpack
from blockvault.errors import Damaged
from blockvault.ids import object_id
from blockvault.store import bloomfile, frames, tables
from blockvault.store.index import ENTRY_SIZE
from blockvault.store.tables import INDEX_PARTS

BITS = 26
"""8 MiB of memory; one id in seven passes for nothing when ten million are indexed."""
ROWS_A_LOOKUP = 16
"""Rows that are read into the filter for each object that was looked up."""
_PARTS_AT_ONCE = 32
LOAD_AFTER = 512
"""Objects that were looked up before an earlier process's filter is read: for fewer it is dear."""
KEEP_FROM = 1 << 20
"""Objects in the index from which on the filter is left to later processes: to leave it from 65,536
on made imports a tenth slower, which have no use for it."""
_TOO_FULL = 2
"""Bits set for each object of the index from which on those of removed ones are too many."""
CATCH_UP_FRAMES, CATCH_UP_BYTES = 32, 16 << 20
"""Frames of others that are taken into the filter, and bytes of their objects, at most."""

_SHIFT = 32 - BITS
_HEADS = struct.Struct(f">I{ENTRY_SIZE - 4}x")


class IndexReader(Protocol):
    """What the filter asks of a transaction."""

    def next_frame(self) -> int: ...
    def index_size(self) -> int: ...
    def index_entries(self, first: int) -> bytes: ...
    def indexed(self, ids: Sequence[bytes]) -> set[bytes]: ...
    def frame_view(self, number: int) -> memoryview | None: ...
    def get(self, table: str, key: bytes) -> bytes | None: ...


class Keeper(IndexReader, Protocol):
    """The same, of a write transaction."""

    def put(self, table: str, key: bytes, value: bytes) -> None: ...


class Bloom:
    """The filter of one open store; safe to use from several threads."""

    def __init__(self, directory: Path | None = None) -> None:
        """``directory`` is where it may be kept."""
        self._guard = threading.Lock()
        self._directory = directory
        self._begin(0)

    def _begin(self, clock: int) -> None:
        self._base = self._next = clock
        self._bits: bytearray | None = None
        self._parts = 0
        """Ids that begin with a smaller byte are in the filter."""
        self._credit = 0
        self._before_loading = LOAD_AFTER
        """Look-ups until the file is read; 0 when it has been."""
        self._changed = False
        """Whether there is more in the filter than in the file."""

    def perhaps(self, reader: IndexReader, ids: Sequence[bytes]) -> list[bytes]:
        """Those of ``ids`` that may be in the index as the reader sees it.

        All the others are not, or have been removed since the reader began.
        """
        try:
            now = reader.next_frame()
        except Damaged:
            return list(ids)
        with self._guard:
            if now > self._next and not self._catch_up(reader, now):
                self._begin(now)
            elif now < self._base:
                return list(ids)
            found = self._passing(ids)
            self._credit += len(found) * ROWS_A_LOOKUP
            if self._before_loading:
                self._before_loading = max(0, self._before_loading - len(found))
                if not self._before_loading:
                    self._load(reader, now)
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

    def worth_keeping(self, reader: IndexReader) -> bool:
        """Whether a later process should find this filter, and not what is there already."""
        with self._guard:
            was_read = not self._before_loading
            return self._changed and was_read and reader.index_size() >= KEEP_FROM

    def keep(self, writer: Keeper) -> None:
        """Leave the filter to later processes.  ``OSError`` if there is no room for it."""
        with self._guard:
            if self._directory is None or self._bits is None or writer.next_frame() != self._next:
                return
            if int.from_bytes(self._bits).bit_count() > _TOO_FULL * writer.index_size():
                self._begin(self._next)
                return
            token = os.urandom(bloomfile.TOKEN_SIZE)
            writer.put(tables.META, bloomfile.META_KEY, pack(token))
            kept = bloomfile.Kept(self._next, self._parts, self._bits)
            bloomfile.save(self._directory, token, kept)
            self._changed = False

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

    def _load(self, reader: IndexReader, now: int) -> None:
        """Take what an earlier process left, if it is this vault's and can be caught up."""
        kept = self._kept(reader)
        if kept is None or kept.parts < self._parts or not kept.clock <= now == self._next:
            return
        mine = self._next, self._parts, self._bits
        self._next, self._parts, self._bits = kept
        self._changed = False
        if not self._catch_up(reader, now):
            self._next, self._parts, self._bits = mine

    def _kept(self, reader: IndexReader) -> bloomfile.Kept | None:
        try:
            row = reader.get(tables.META, bloomfile.META_KEY)
            token = row and unpack(row, "the filter's token")
        except Damaged:
            return None
        if self._directory is None or not isinstance(token, bytes):
            return None
        return bloomfile.load(self._directory, token, 1 << BITS >> 3)

    def _catch_up(self, reader: IndexReader, now: int) -> bool:
        """Add what the frames hold that others stored since; False if that is too much."""
        if self._bits is None or now - self._next > CATCH_UP_FRAMES:
            return False
        size = 0
        try:
            for number in range(self._next, now):
                view = reader.frame_view(number)
                if view is None:
                    return False
                objects = frames.decode(view)
                size += len(objects.payload)
                if size > CATCH_UP_BYTES:
                    return False
                ids = {object_id(data) for data in objects}
                # A damaged frame holds other objects than those that were indexed.
                if len(reader.indexed(list(ids))) != len(ids):
                    return False
                self._add(map(_number, ids))
        except (lmdb.Error, Damaged):
            return False
        self._next = now
        return True

    def _add(self, numbers: Iterable[int]) -> None:
        if self._bits is None:
            self._bits = bytearray(1 << BITS >> 3)
        self._changed = True
        bits = self._bits
        for number in numbers:
            bits[number >> 3] |= 1 << (number & 7)


def _number(oid: bytes) -> int:
    """The first bits of an id."""
    return int.from_bytes(oid[:4]) >> _SHIFT
