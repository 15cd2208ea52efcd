"""Rows that tell when they are not what was written, and when one of them is missing.

LMDB checks nothing: a flipped bit in a small row would be believed, and one in a key hides the row.
So every row of a table with byte keys is stored as ::

    value ‖ next ‖ length of next u16 LE ‖ check
    check = BLAKE3(table ‖ 0x00 ‖ length of key u16 LE ‖ key ‖ all before the check)[:8]

``next`` is the key of the next row of the table, empty in the last one; and before all rows stands
one under ``FIRST``.  Whoever reads several rows follows the links, and a row that is not there is
proved not to be by the one before its place.  The key is part of the check, since a row whose key
changed must not pass for another row.

The table ``runs`` has checks but no links: a row that is missing there only costs time.  The index
has neither: what it leads to is proved by its hash, and what it lacks is an error or stored again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import lmdb
from blake3 import blake3

from blockvault.errors import Damaged
from blockvault.store import tables
from blockvault.store.tables import FIRST

_CHECK = 8
_TAIL = 2 + _CHECK
_LOWEST = FIRST + b"\0"
"""The least key that a row may have."""


class Row(NamedTuple):
    """A stored row, opened; ``next`` is empty if it is the last."""

    key: bytes
    value: bytes
    next: bytes


def seal(table: str, row: Row) -> bytes:
    """The row as it is stored under its key."""
    body = row.value + row.next + len(row.next).to_bytes(2, "little")
    return body + _check(table, row.key, body)


def unseal(table: str, key: bytes, stored: bytes | memoryview) -> Row:
    """Inverse of ``seal``; ``Damaged`` if it is not what was stored under this key."""
    data = bytes(stored)
    body = data[:-_CHECK]
    if len(data) < _TAIL or data[-_CHECK:] != _check(table, key, body):
        raise _damaged(table, "a row is not what was written")
    at = len(body) - 2 - int.from_bytes(body[-2:], "little")
    return Row(key, body[:at], body[at:-2])


def _check(table: str, key: bytes, body: bytes) -> bytes:
    place = table.encode() + b"\0" + len(key).to_bytes(2, "little")
    return blake3(place + key + body).digest(_CHECK)


def _damaged(table: str, what: str) -> Damaged:
    return Damaged(
        f"{what} in table '{table}'; 'blockvault verify' tells what is damaged, 'blockvault "
        "rebuild' mends what the log still says",
        kind="row-damaged",
    )


class Rows:
    """One table of checked rows in one transaction, read through one cursor."""

    __slots__ = ("_cursor", "_table")

    def __init__(self, cursor: lmdb.Cursor[memoryview], table: str) -> None:
        self._cursor = cursor
        self._table = table

    def get(self, key: bytes) -> bytes | None:
        return self._here().value if self._cursor.set_key(key) else None

    def scan(self, start: bytes, stop: bytes | None, reverse: bool) -> Iterator[Row]:
        """Rows with start <= key < stop in order, or the same rows backwards."""
        cursor = self._cursor
        if reverse:
            beyond = stop is not None and cursor.set_range(stop)
            more = cursor.prev() if beyond else cursor.last()
        else:
            more = cursor.set_range(start) if start else cursor.first()
        while more:
            row = self._here()
            if row.key < start if reverse else stop is not None and row.key >= stop:
                return
            yield row
            more = cursor.prev() if reverse else cursor.next()

    def suspicious(self) -> Iterator[tuple[bytes, bytes | None]]:
        """All rows as they stand, None for the value of one that is damaged."""
        self._cursor.first()
        for key, stored in self._cursor.iternext():
            try:
                yield bytes(key), unseal(self._table, bytes(key), stored).value
            except Damaged:
                yield bytes(key), None

    def put(self, key: bytes, value: bytes) -> None:
        self._store(Row(key, value, b""))

    def delete(self, key: bytes) -> bool:
        """True if there was such a row."""
        return self._cursor.set_key(key) and self._cursor.delete()

    def begin(self) -> None:
        """Make an empty table ready for rows."""

    def _here(self) -> Row:
        return unseal(self._table, bytes(self._cursor.key()), self._cursor.value())

    def _store(self, row: Row) -> None:
        self._cursor.put(row.key, seal(self._table, row))


class LinkedRows(Rows):
    """The same for a table whose rows name the next one: none can go missing unnoticed."""

    __slots__ = ()

    def get(self, key: bytes) -> bytes | None:
        row = self._find(key)
        return row.value if row.key == key else None

    def scan(self, start: bytes, stop: bytes | None, reverse: bool) -> Iterator[Row]:
        return self._backward(start, stop) if reverse else self._forward(start, stop)

    def _forward(self, start: bytes, stop: bytes | None) -> Iterator[Row]:
        due = self._before(start).next
        while due and (stop is None or due < stop):
            if not self._cursor.next() or self._cursor.key() != due:
                raise self._missing()
            row = self._here()
            yield row
            due = row.next

    def _backward(self, start: bytes, stop: bytes | None) -> Iterator[Row]:
        row = self._before(stop)
        while row.key >= max(start, _LOWEST):
            yield row
            if not self._cursor.prev():
                raise self._missing()
            before = self._here()
            if before.next != row.key:
                raise self._missing()
            row = before

    def suspicious(self) -> Iterator[tuple[bytes, bytes | None]]:
        """A row that names another than the one that follows counts as damaged too."""
        before = Row(b"", b"", FIRST)
        for row in chain(self._opened(), [Row(b"", b"", b"")]):
            if before.next != row.key:
                yield before.key, None
            elif before.key > FIRST:
                yield before.key, before.value
            before = row

    def _opened(self) -> Iterator[Row]:
        """All rows as they stand; a damaged one is followed by itself, as no sound one is."""
        self._cursor.first()
        for found, stored in self._cursor.iternext():
            key = bytes(found)
            try:
                yield unseal(self._table, key, stored)
            except Damaged:
                yield Row(key, b"", key)

    def put(self, key: bytes, value: bytes) -> None:
        found = self._find(key)
        if found.key != key:
            self._store(Row(found.key, found.value, key))
        self._store(Row(key, value, found.next))

    def delete(self, key: bytes) -> bool:
        before = self._before(key)
        if before.next != key:
            return False
        if not self._cursor.next() or self._cursor.key() != key:
            raise self._missing()
        following = self._here().next
        self._cursor.delete()
        self._store(Row(before.key, before.value, following))
        return True

    def begin(self) -> None:
        self._store(Row(FIRST, b"", b""))

    def _find(self, key: bytes) -> Row:
        """The row under ``key``; or the last before it, whose link proves that there is none."""
        beyond = self._cursor.set_range(key)
        if beyond and self._cursor.key() == key:
            return self._here()
        row = self._back(beyond, key)
        if row.next == key:
            raise self._missing()
        return row

    def _before(self, key: bytes | None) -> Row:
        """The last row before ``key``, which may be there or not, or the last of all."""
        low = None if key is None else max(key, _LOWEST)
        return self._back(low is not None and self._cursor.set_range(low), low)

    def _back(self, beyond: bool, key: bytes | None) -> Row:
        """Go back from the first row at or beyond ``key``; no row may be missing in between."""
        if not (self._cursor.prev() if beyond else self._cursor.last()):
            raise self._missing()
        row = self._here()
        if key is None:
            due = not row.next
        else:
            due = row.key < key and (not row.next or key <= row.next)
        if not due:
            raise self._missing()
        return row

    def _missing(self) -> Damaged:
        return _damaged(self._table, "a row is missing")


def rows_of(cursor: lmdb.Cursor[memoryview], table: str) -> Rows:
    """The rows of a table, linked unless nobody relies on a row being absent."""
    return Rows(cursor, table) if table == tables.RUNS else LinkedRows(cursor, table)
