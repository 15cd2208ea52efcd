"""The object index as LMDB keeps it: small, because it is the largest table of small rows.

A row ``id -> place`` in a plain table costs 58 bytes a row and a third of air.  Here the first byte
of the id is the key and everything else one fixed-size duplicate of it::

    key    id[0]                           256 keys
    value  id[1:32] ‖ place u56 BE          38 bytes, sorted, one after another without headers

which LMDB stores as 256 sorted arrays in trees of their own (``MDB_DUPFIXED``), a fifth smaller.

Ids come in no order, so the rows of a small commit fall on nearly as many pages, each of which is
written anew.  So new rows go under a second key first, ``id[0] ‖ 00``, whose rows are few and lie
on the same page or two; when there are enough of them they move on together.  That needs the
feature ``RECENT_ROWS``, since a program that does not look there would miss objects.

To everybody else the index is still a table with 32-byte keys and 8-byte values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice, repeat

import lmdb

from blockvault.errors import BadRequest, Damaged
from blockvault.ids import ID_SIZE
from blockvault.store.tables import INDEX_PARTS, MAX_PLACE

_REST = ID_SIZE - 1
_PLACE = 7
ENTRY_SIZE = ID_SIZE + _PLACE
"""Bytes of an entry of the index, as id ‖ place."""

_SETTLED = [bytes([first]) for first in range(INDEX_PARTS)]
_RECENT = [bytes([first, 0]) for first in range(INDEX_PARTS)]
_FEWEST, _MOST = 64, 192
_LIMITS = [
    _FEWEST + first * 37 % INDEX_PARTS * (_MOST - _FEWEST) // INDEX_PARTS
    for first in range(INDEX_PARTS)
]
"""Recent rows at which those of a first byte move: not the same for all, or all move at once."""

_ROW_SIZE = _REST + _PLACE
_ROWS = {length: struct.Struct(f"{length}x{_ROW_SIZE}s") for length in (1, 2)}
"""A row behind a key of that length."""

_SLICE = 16_384
"""Rows that are read at once; in a large index each page has its neighbours mapped along."""
_SEEK_ROWS = 8
"""Rows that are read in order in the time of one look-up."""

_ENTRY = struct.Struct(f"{ID_SIZE}s{_PLACE}s")


class Index:
    """The index within one transaction, read through one cursor; ``recent``: see above."""

    __slots__ = ("_cursor", "_recent")

    def __init__(self, cursor: lmdb.Cursor[memoryview], recent: bool) -> None:
        self._cursor = cursor
        self._recent = recent

    def get(self, oid: bytes) -> int | None:
        """The place of an object, or None."""
        return _place(self._cursor.value()) if self._find(oid) else None

    def _find(self, oid: bytes) -> bool:
        """Go to the row of an object, if there is one."""
        first, rest, cursor = oid[0], oid[1:], self._cursor
        for keys in (_SETTLED, _RECENT):
            if cursor.set_range_dup(keys[first], rest) and cursor.value()[:_REST] == rest:
                return True
        return False

    def get_many(self, ids: Iterable[bytes]) -> dict[bytes, int]:
        """The places of those ids that are there; asked in order, so that pages are met once."""
        seek, value = self._cursor.set_range_dup, self._cursor.value
        found = {}
        for oid in sorted(ids):
            first, rest = oid[0], oid[1:]
            for keys in (_SETTLED, _RECENT):
                if seek(keys[first], rest):
                    row = bytes(value())
                    if row.startswith(rest):
                        found[oid] = _place(row)
                        break
        return found

    def dense(self, first: int, count: int) -> bool:
        """Whether ``count`` ids with this first byte are found faster by reading all its rows."""
        return worth_a_walk(count, self._count(_SETTLED[first]))

    def get_dense(self, first: int, ids: Iterable[bytes]) -> dict[bytes, int]:
        """``get_many`` for ids with this first byte, out of all its rows."""
        rows = dict(entries_of(self.entries(first)))
        return {oid: int.from_bytes(rows[oid]) for oid in ids if oid in rows}

    def hidden(self, first: int) -> int:
        """How many rows of ids that begin with this byte are not found by themselves."""
        there = found = 0
        for key in (_SETTLED[first], _RECENT[first]):
            rows = self._rows(key)
            there += len(rows)
            found += sum(map(self._cursor.set_key_dup, repeat(key), rows))
        return there - found

    def scan(self, start: bytes, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, int]]:
        """Rows with start <= id < stop in order, or the same rows backwards."""
        firsts = range(start[0] if start else 0, stop[0] + 1 if stop else INDEX_PARTS)
        for first in reversed(firsts) if reverse else firsts:
            for oid, place in sorted(entries_of(self.entries(first)), reverse=reverse):
                if start <= oid and (stop is None or oid < stop):
                    yield oid, int.from_bytes(place)

    def entries(self, first: int) -> bytes:
        """All rows of ids that begin with this byte, as id ‖ place one after another.

        In order only as far as they are settled.
        """
        return b"".join(self.slices(first))

    def slices(self, first: int) -> Iterator[bytes]:
        """The same some at a time, so that not all of their pages are mapped at once."""
        byte = _SETTLED[first]
        if self._count(byte) <= _SLICE:
            yield self._with_keys(byte)  # several times as fast
        else:
            rows = self._cursor.iternext_dup(keys=False)
            while some := list(islice(rows, _SLICE)):
                joined = b"".join([byte + row for row in some])
                if len(joined) != len(some) * (1 + _ROW_SIZE):
                    raise _wrong_length()
                yield joined
        yield b"".join([byte + row for row in self._rows(_RECENT[first])])

    def _rows(self, key: bytes) -> list[bytes]:
        """The rows under a key, in order."""
        found = self._with_keys(key)
        return list(chain.from_iterable(_ROWS[len(key)].iter_unpack(found)))

    def _with_keys(self, key: bytes) -> bytes:
        """The rows under a key, each behind that key, one after another."""
        return bytes(
            self._cursor.getmulti([key], dupdata=True, dupfixed_bytes=_ROW_SIZE, keyfixed=True)
        )

    def put(self, oid: bytes, place: int) -> None:
        """Set an object's place."""
        self.delete(oid)
        self.add([(oid, place)])

    def add(self, rows: Sequence[tuple[bytes, int]]) -> int:
        """Add rows of objects that are not there yet; return how many others were moved."""
        moved = 0
        for oid, place in rows:
            if len(oid) != ID_SIZE or not 0 <= place <= MAX_PLACE:
                raise BadRequest(f"object {oid.hex()} cannot be at place {place}")
        for first, some in groupby(sorted(rows), lambda row: row[0][0]):
            values = [oid[1:] + place.to_bytes(_PLACE) for oid, place in some]
            if self._recent and len(values) < _LIMITS[first]:
                moved += self._add_recent(first, values)
            else:
                self._put(_SETTLED[first], values)
        return moved

    def _add_recent(self, first: int, values: Sequence[bytes]) -> int:
        self._put(_RECENT[first], values)
        if self._count(_RECENT[first]) < _LIMITS[first]:
            return 0
        moved = self._take_behind_first(_RECENT[first])
        self._put(_SETTLED[first], moved)
        return len(moved)

    def _put(self, key: bytes, values: Sequence[bytes], *, append: bool = False) -> None:
        self._cursor.putmulti([(key, value) for value in values], dupdata=True, append=append)

    def _take_behind_first(self, key: bytes) -> list[bytes]:
        """All rows under a key but the first one; they are gone then.

        LMDB 0.9 adds the pages of the rows under a key to those of the table, and does not take
        them off again when the last of these rows goes.  Its verifier takes that for damage.
        """
        cursor = self._cursor
        if not cursor.set_key(key):
            return []
        values = [bytes(value) for value in cursor.iternext_dup(keys=False)][1:]
        cursor.set_key(key)
        cursor.next_dup()
        for _ in values:
            cursor.delete()
        return values

    def delete(self, oid: bytes) -> bool:
        """Forget an object; True if it was there."""
        cursor = self._cursor
        if not self._find(oid):
            return False
        if cursor.count() == 1 and len(cursor.key()) == 2:
            self._refill(oid[0])
            self._find(oid)
        return cursor.delete()

    def _refill(self, first: int) -> None:
        """A settled row becomes a recent one: see ``_take_behind_first``."""
        cursor = self._cursor
        if cursor.set_key(_SETTLED[first]) and cursor.count() > 1:
            value = bytes(cursor.value())
            cursor.delete()
            self._put(_RECENT[first], [value])

    def tighten(self, first: int) -> int:
        """Write the rows whose ids begin with one byte anew: full pages instead of split ones.

        Return how many there are.
        """
        self._put(_SETTLED[first], self._take_behind_first(_RECENT[first]))
        values = self._take_behind_first(_SETTLED[first])
        self._put(_SETTLED[first], values, append=True)
        return self._count(_SETTLED[first]) + self._count(_RECENT[first])

    def _count(self, key: bytes) -> int:
        return self._cursor.count() if self._cursor.set_key(key) else 0


def entries_of(entries: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Entries that stand one after another, as (id, place)."""
    return _ENTRY.iter_unpack(entries)


def worth_a_walk(count: int, rows: int) -> bool:
    """Whether ``count`` objects are found faster by reading all rows than by asking for each."""
    return count * _SEEK_ROWS > rows


def _place(row: bytes | memoryview) -> int:
    """The place in a row.  A damaged page gives rows of any length."""
    if len(row) != _ROW_SIZE:
        raise _wrong_length()
    return int.from_bytes(row[_REST:])


def _wrong_length() -> Damaged:
    return Damaged("a row of the object index has the wrong length", kind="bad-encoding")
