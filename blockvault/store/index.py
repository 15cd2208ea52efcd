"""The object index as LMDB keeps it: small, because it is the largest table of small rows.

A row ``id -> place`` in a plain table costs 58 bytes a row and a third of air.  Here the first byte
of the id is the key and everything else one fixed-size duplicate of it::

    key    id[0]                           256 keys
    value  id[1:32] ‖ place u56 BE          38 bytes, sorted, one after another without headers

which LMDB stores as 256 sorted arrays in trees of their own (``MDB_DUPFIXED``), a fifth smaller.
To everybody else the index is still a table with 32-byte keys and 8-byte values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat

import lmdb

from blockvault.errors import BadRequest, Damaged
from blockvault.ids import ID_SIZE
from blockvault.store.tables import MAX_PLACE

_REST = ID_SIZE - 1
_PLACE = 7
ENTRY_SIZE = ID_SIZE + _PLACE
"""Bytes of an entry of the index, as id ‖ place."""

_FIRST = [bytes([first]) for first in range(256)]
_VALUE = struct.Struct(f"x{_REST + _PLACE}s")
"""An entry as the table has it: without the byte that is the key."""


class Index:
    """The index within one transaction, read through one cursor."""

    __slots__ = ("_cursor",)

    def __init__(self, cursor: lmdb.Cursor[memoryview]) -> None:
        self._cursor = cursor

    def get(self, oid: bytes) -> int | None:
        """The place of an object, or None."""
        rest = oid[1:]
        cursor = self._cursor
        if cursor.set_range_dup(oid[:1], rest):
            value = cursor.value()
            if value[:_REST] == rest:
                return _place(value)
        return None

    def get_many(self, ids: Iterable[bytes]) -> dict[bytes, int]:
        """The places of those ids that are there; asked in order, so that pages are met once."""
        seek, value = self._cursor.set_range_dup, self._cursor.value
        found = {}
        for oid in sorted(ids):
            rest = oid[1:]
            if seek(oid[:1], rest):
                row = bytes(value())
                if row.startswith(rest):
                    found[oid] = _place(row)
        return found

    def hidden(self, first: int) -> int:
        """How many rows of ids that begin with this byte are not found by themselves."""
        rows = self.entries(first)
        values = chain.from_iterable(_VALUE.iter_unpack(rows))
        found = sum(map(self._cursor.set_key_dup, repeat(_FIRST[first]), values))
        return len(rows) // ENTRY_SIZE - found

    def scan(self, start: bytes, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, int]]:
        """Rows with start <= id < stop in order, or the same rows backwards."""
        cursor = self._cursor
        if reverse:
            more = self._before(stop)
        else:
            more = self._at(start) if start else cursor.first()
        while more:
            value = bytes(cursor.value())
            oid = bytes(cursor.key()) + value[:_REST]
            if (oid < start) if reverse else (stop is not None and oid >= stop):
                return
            yield oid, _place(value)
            more = cursor.prev() if reverse else cursor.next()

    def entries(self, first: int) -> bytes:
        """All rows of ids that begin with this byte, as id ‖ place one after another."""
        found = self._cursor.getmulti(
            [_FIRST[first]], dupdata=True, dupfixed_bytes=ENTRY_SIZE - 1, keyfixed=True
        )
        return bytes(found)

    def _at(self, oid: bytes) -> bool:
        """Go to the first row at or after ``oid``."""
        # A longer key is what a scan goes on from: all rows of that id are before it.
        fill = b"\xff" if len(oid) > ID_SIZE else b"\0"
        cursor = self._cursor
        if cursor.set_range_dup(oid[:1], oid[1:ID_SIZE].ljust(_REST + _PLACE, fill)):
            return True
        return oid[0] < 255 and cursor.set_range(_FIRST[oid[0] + 1])

    def _before(self, oid: bytes | None) -> bool:
        """Go to the last row before ``oid``, or to the last of all."""
        cursor = self._cursor
        if oid is not None and self._at(oid):
            return cursor.prev()
        return cursor.last()

    def put(self, oid: bytes, place: int) -> None:
        """Set an object's place."""
        self.delete(oid)
        self.add([(oid, place)])

    def add(self, rows: Sequence[tuple[bytes, int]]) -> None:
        """Add rows of objects that are not there yet."""
        ordered = sorted(rows)
        for oid, place in ordered:
            if len(oid) != ID_SIZE or not 0 <= place <= MAX_PLACE:
                raise BadRequest(f"object {oid.hex()} cannot be at place {place}")
        self._cursor.putmulti(
            [(oid[:1], oid[1:] + place.to_bytes(_PLACE)) for oid, place in ordered], dupdata=True
        )

    def delete(self, oid: bytes) -> bool:
        """Forget an object; True if it was there."""
        return self.get(oid) is not None and self._cursor.delete()

    def tighten(self, first: int) -> int:
        """Write the rows whose ids begin with one byte anew: full pages instead of split ones.

        Return how many there are.
        """
        key = _FIRST[first]
        if not self._cursor.set_key(key):
            return 0
        values = [bytes(value) for value in self._cursor.iternext_dup(keys=False)]
        self._cursor.set_key(key)
        self._cursor.delete(dupdata=True)
        self._cursor.putmulti([(key, value) for value in values], dupdata=True, append=True)
        return len(values)


def _place(row: bytes | memoryview) -> int:
    """The place in a row.  A damaged page gives rows of any length."""
    if len(row) != _REST + _PLACE:
        raise Damaged("a row of the object index has the wrong length", kind="bad-encoding")
    return int.from_bytes(row[_REST:])
