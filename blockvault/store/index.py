"""The object index as LMDB keeps it: small, because it is the largest table of small rows.

A row ``id -> place`` in a plain table costs 58 bytes a row and a third of air.  Here the first byte
of the id is the key and everything else one fixed-size duplicate of it::

    key    id[0]                           256 keys
    value  id[1:32] ‖ place u56 BE          38 bytes, sorted, one after another without headers

which LMDB stores as 256 sorted arrays in trees of their own (``MDB_DUPFIXED``), a fifth smaller.

Ids come in no order, so the rows of a small commit fall on nearly as many pages, each of which is
written anew.  So new rows go under another key first, whose rows are few and lie on the same page
or two; when there are enough of them they move on together, in a large index to a third key, and
from there to the first::

    id[0] ‖ 00      recent     up to 64 to 192 rows
    id[0] ‖ 01      waiting    sixteen times as many, where that is less than half of the settled
    id[0]           settled    all others

That needs the feature ``WAITING_ROWS``, or ``RECENT_ROWS`` without the second key, since a program
that does not look there would miss objects.

To everybody else the index is still a table with 32-byte keys and 8-byte values.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice, repeat

import lmdb

from blockvault.errors import BadRequest, Damaged
from blockvault.ids import ID_SIZE
from blockvault.store.tables import INDEX_PARTS, MAX_PLACE

_REST = ID_SIZE - 1
_PLACE = 7
ENTRY_SIZE = ID_SIZE + _PLACE
"""Bytes of an entry of the index, as id ‖ place."""

_ENDS = {1: (b"",), 2: (b"", b"\0"), 3: (b"", b"\1", b"\0")}
_KEYS = {
    levels: [[bytes([first]) + end for end in ends] for first in range(INDEX_PARTS)]
    for levels, ends in _ENDS.items()
}
"""By the number of levels and the first byte: the keys, that of the settled rows first."""
_FEWEST, _MOST = 64, 192
_LIMITS = [
    _FEWEST + first * 37 % INDEX_PARTS * (_MOST - _FEWEST) // INDEX_PARTS
    for first in range(INDEX_PARTS)
]
"""Recent rows at which those of a first byte move: not the same for all, or all move at once."""
_STEP = 16
"""So many times as many rows may wait as are recent."""

_ROW_SIZE = _REST + _PLACE
_ROWS = {length: struct.Struct(f"{length}x{_ROW_SIZE}s") for length in (1, 2)}
"""A row behind a key of that length."""

_PUT_AT_ONCE = 64
"""Rows that are put between two counts: in a large index each maps a page and its neighbours."""
_SLICE = 16_384
"""Rows that are read at once; in a large index each page has its neighbours mapped along."""
_SEEK_ROWS = 8
"""Rows that are read in order in the time of one look-up."""

_ENTRY = struct.Struct(f"{ID_SIZE}s{_PLACE}s")


class Index:
    """The index within one transaction, read through one cursor, of one to three levels."""

    __slots__ = ("_cursor", "_keys")

    def __init__(self, cursor: lmdb.Cursor[memoryview], levels: int) -> None:
        self._cursor = cursor
        self._keys = _KEYS[levels]

    def get(self, oid: bytes) -> int | None:
        """The place of an object, or None."""
        return _place(self._cursor.value()) if self._find(oid) else None

    def _find(self, oid: bytes) -> bool:
        """Go to the row of an object, if there is one."""
        first, rest, cursor = oid[0], oid[1:], self._cursor
        for key in self._keys[first]:
            if cursor.set_range_dup(key, rest) and cursor.value()[:_REST] == rest:
                return True
        return False

    def get_many(self, ids: Iterable[bytes]) -> dict[bytes, int]:
        """The places of those ids that are there; asked in order, so that pages are met once."""
        seek, value, keys = self._cursor.set_range_dup, self._cursor.value, self._keys
        found = {}
        for oid in sorted(ids):
            first, rest = oid[0], oid[1:]
            for key in keys[first]:
                if seek(key, rest):
                    row = bytes(value())
                    if row.startswith(rest):
                        found[oid] = _place(row)
                        break
        return found

    def dense(self, first: int, count: int) -> bool:
        """Whether ``count`` ids with this first byte are found faster by reading all its rows."""
        return worth_a_walk(count, self._count(self._keys[first][0]))

    def get_dense(self, first: int, ids: Iterable[bytes]) -> dict[bytes, int]:
        """``get_many`` for ids with this first byte, out of all its rows."""
        rows = dict(entries_of(self.entries(first)))
        return {oid: int.from_bytes(rows[oid]) for oid in ids if oid in rows}

    def hidden(self, first: int) -> int:
        """How many rows of ids that begin with this byte are not found by themselves."""
        count, find = 0, self._cursor.set_key_dup
        for key, there in self._met(first).items():
            # Nobody looks under a key that is damaged; and one above it may hide it as a whole, but
            # not from a cursor that is on its page already: so it goes to the first one.
            if key in self._keys[first] and self._cursor.first() and self._cursor.set_key(key):
                there -= sum(map(find, repeat(key), self._rows(key)))
            count += there
        return count

    def _met(self, first: int) -> dict[bytes, int]:
        """The keys with this first byte that are met one after another, and how many rows each has.
        """
        cursor, found = self._cursor, {}
        more = cursor.set_range(bytes([first]))
        while more and cursor.key()[0] == first:
            found[bytes(cursor.key())] = cursor.count()
            more = cursor.next_nodup()
        return found

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
        byte = bytes([first])
        for key in self._keys[first]:
            if self._count(key) > _SLICE:
                yield from self._sliced(byte)
            elif key == byte:
                yield self._with_keys(key)  # several times as fast
            else:
                yield b"".join([byte + row for row in self._rows(key)])

    def _sliced(self, byte: bytes) -> Iterator[bytes]:
        """``slices`` of the rows under the key that the cursor is at."""
        rows = self._cursor.iternext_dup(keys=False)
        while some := list(islice(rows, _SLICE)):
            joined = b"".join([byte + row for row in some])
            if len(joined) != len(some) * (1 + _ROW_SIZE):
                raise _wrong_length()
            yield joined

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

    def add(
        self,
        rows: Sequence[tuple[bytes, int]],
        counted: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Add rows of objects that are not there yet, and move others on.

        ``counted`` hears of all rows that were written, before they have touched many pages.
        """
        for oid, place in rows:
            if len(oid) != ID_SIZE or not 0 <= place <= MAX_PLACE:
                raise BadRequest(f"object {oid.hex()} cannot be at place {place}")
        for first, some in groupby(sorted(rows), lambda row: row[0][0]):
            values = [oid[1:] + place.to_bytes(_PLACE) for oid, place in some]
            self._add_at(len(self._keys[first]) - 1, first, values, counted)

    def _add_at(
        self, level: int, first: int, values: Sequence[bytes], counted: Callable[[int], None]
    ) -> None:
        """Add rows at a level, or further down if they are many."""
        while level and len(values) >= (limit := self._limit(level, first)):
            level -= 1
        key = self._keys[first][level]
        for at in range(0, len(values), _PUT_AT_ONCE):
            some = values[at : at + _PUT_AT_ONCE]
            self._put(key, some)
            counted(len(some))
        if level and self._count(key) >= limit:
            self._add_at(level - 1, first, self._take_behind_first(key), counted)

    def _limit(self, level: int, first: int) -> int:
        """Rows of a first byte at which those of a level move down; 0 where none are to wait."""
        settled, limit = self._keys[first][0], _LIMITS[first]
        if level == len(self._keys[first]) - 1:
            return limit
        return limit * _STEP if self._count(settled) >= 2 * limit * _STEP else 0

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
        values = self._rows(key)[1:]
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
        key = bytes(cursor.key())
        if len(key) == 2 and cursor.count() == 1:
            self._refill(key)
            self._find(oid)
        return cursor.delete()

    def _refill(self, key: bytes) -> None:
        """A settled row goes back under this key: see ``_take_behind_first``."""
        cursor = self._cursor
        if cursor.set_key(key[:1]) and cursor.count() > 1:
            value = bytes(cursor.value())
            cursor.delete()
            self._put(key, [value])

    def tighten(self, first: int) -> int:
        """Write the rows whose ids begin with one byte anew: full pages instead of split ones.

        Return how many there are; ``Damaged`` if some would be lost: then nothing may be committed.
        """
        settled, *others = self._keys[first]
        for key in others:
            self._put(settled, self._take_behind_first(key))
        rows = self._count(settled)
        values = self._take_behind_first(settled)
        self._put(settled, values, append=True)
        if self._count(settled) != rows:  # appending passes over what is not behind the last row
            raise Damaged("rows of the object index are out of order", kind="bad-index")
        return sum(map(self._count, self._keys[first]))

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
