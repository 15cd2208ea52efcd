"""Read transactions of the LMDB store.

One costs about 0.3 µs, because py-lmdb resets and renews one spare handle per environment: so begin
one for each thing you look up, and never hold one.

Values are read as views into the map and copied before they leave.  A view that is kept beyond its
transaction is a crash, not an exception.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import Any, Self, TypeVar

import lmdb

from blockvault.errors import BadRequest, Busy, Damaged
from blockvault.store import faults, rows, tables
from blockvault.store.format import index_levels
from blockvault.store.frames import HEADER_SIZE
from blockvault.store.index import Index, entries_of, worth_a_walk
from blockvault.store.residency import A_LOOKUP
from blockvault.store.shared import Database, Environment
from blockvault.store.types import HEADS_AT_ONCE, Reader

_MANY = 16 * tables.INDEX_PARTS
"""Objects from which on it is worth asking whether reading the index is faster than looking up."""

T = TypeVar("T")


class LmdbReader(Reader):
    """A snapshot; see ``types.Reader``.  Begins when it is entered."""

    def __init__(self, environment: Environment) -> None:
        self._env = environment
        self.options = environment.options
        self._dbs = environment.databases

    def __enter__(self) -> Self:
        self._env.acquire()
        try:
            self._txn = self._begin()
        except BaseException as error:
            self._env.release()
            if isinstance(error, lmdb.Error):
                raise faults.from_lmdb(error, self._env.path) from error
            raise
        return self

    def _begin(self) -> lmdb.Transaction[memoryview]:
        try:
            return self._env.lmdb.begin(buffers=True)
        except lmdb.ReadersFullError:
            # Slots of killed processes are freed by nobody else.
            self._env.lmdb.reader_check()
            return self._env.lmdb.begin(buffers=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._env.check_process(self._txn)
        try:
            if self._env.lockless:
                self._check_unchanged()
            self._txn.abort()
        finally:
            # py-lmdb keeps the handle for the next reader when this one lets go of it.
            del self._txn
            self._env.residency.settle()
            self._env.release()
        if isinstance(error, lmdb.Error):
            raise faults.from_lmdb(error, self._env.path) from error

    def _check_unchanged(self) -> None:
        # Without locks a writer does not know of us: two commits on, it may reuse our pages.
        if self._env.lmdb.info()["last_txnid"] > self._txn.id() + 1:
            raise Busy(
                f"{self._env.path}: the vault was written to while it was read without locks",
                kind="unlocked-read",
            )

    @property
    def txn_id(self) -> int:
        return self._txn.id()

    def get(self, table: str, key: bytes) -> bytes | None:
        if table == tables.INDEX:
            place = self._index().get(tables.check_key(key))
            return None if place is None else tables.pack_location(place)
        return self._checked(table).get(tables.check_key(key))

    def scan(
        self, table: str, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return self._rows(table, start, stop, reverse)

    def _rows(
        self, table: str, start: bytes, stop: bytes | None, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        if table == tables.INDEX:
            places = self._index().scan(start, stop, reverse)
            return ((oid, tables.pack_location(place)) for oid, place in places)
        found = self._checked(table).scan(start, stop, reverse)
        return ((row.key, row.value) for row in found)

    def suspicious(self, table: str) -> Iterator[tuple[bytes, bytes | None]]:
        return self._checked(table).suspicious()

    def _checked(self, table: str) -> rows.Rows:
        return rows.rows_of(self._txn.cursor(self._keyed(table)), table)

    def _index(self) -> Index:
        cursor = self._txn.cursor(self._dbs[tables.INDEX])
        return Index(cursor, index_levels(self.options.features))

    def table_bytes(self) -> dict[str, int]:
        return {name: _pages(dict(self._txn.stat(db))) for name, db in self._dbs.items()}

    def locate(self, ids: Sequence[bytes]) -> list[int | None]:
        found = self._placed(set(ids))
        return [found.get(oid) for oid in ids]

    def places(self, first: int, ids: Set[bytes]) -> list[int]:
        if worth_a_walk(len(ids), self.index_size() // tables.INDEX_PARTS):
            # A damaged page hides its own rows only from who asks for each.
            with suppress(lmdb.Error, Damaged):
                rows = entries_of(self.index_entries(first))
                return [int.from_bytes(place) for oid, place in rows if oid in ids]
        return super().places(first, ids)

    def index_entries(self, first: int) -> bytes:
        found = []
        for some in self._index().slices(first):
            found.append(some)
            self._env.residency.note(len(some) // mmap.PAGESIZE * A_LOOKUP)
            self._env.residency.settle()
        return b"".join(found)

    def hidden(self, first: int) -> int:
        return self._index().hidden(first)

    def index_size(self) -> int:
        return int(self._txn.stat(self._dbs[tables.INDEX])["entries"])

    def known(self, ids: Sequence[bytes]) -> set[bytes]:
        return super().known(self._env.bloom.perhaps(self, ids))

    def indexed(self, ids: Sequence[bytes]) -> set[bytes]:
        return set(self._placed(ids))

    def _placed(self, ids: Collection[bytes]) -> dict[bytes, int]:
        index, wanted = self._index(), sorted(ids)
        found: dict[bytes, int] = {}
        if len(wanted) >= _MANY:
            wanted = self._read_dense(index, wanted, found)
        for some in self._in_parts(wanted):
            found.update(index.get_many(some))
        return found

    def _read_dense(
        self, index: Index, ids: Sequence[bytes], found: dict[bytes, int]
    ) -> list[bytes]:
        """Find the ids for which reading the index is faster than asking it; return the others."""
        residency, others = self._env.residency, []
        for first, group in groupby(ids, itemgetter(0)):
            some = list(group)
            try:
                if index.dense(first, len(some)):
                    found.update(index.get_dense(first, some))
                    residency.note(len(some) * A_LOOKUP)
                    residency.settle()
                    continue
            except (lmdb.Error, Damaged):
                pass  # a damaged page hides its own rows only from who asks for each
            others += some
        return others

    def _in_parts(self, rows: Sequence[T]) -> Iterator[Sequence[T]]:
        """Rows of the index, a part at a time: a transaction may ask for any number of them.

        When the caller comes for the next part, what the last one touched is counted.
        """
        residency = self._env.residency
        at_once, each = self._lookups()
        for at in range(0, len(rows), at_once):
            some = rows[at : at + at_once]
            yield some
            residency.note(each * len(some))
            residency.settle()

    def _lookups(self) -> tuple[int, int]:
        size = self._env.lmdb.info()["last_pgno"] * mmap.PAGESIZE
        return self._env.residency.lookups(size)

    def find(self, oid: bytes) -> tuple[int, memoryview] | None:
        get, databases = self._txn.get, self._dbs
        place = self._index().get(oid)
        if place is None:
            return None
        number = place >> tables.SLOT_BITS
        view = get(tables.integer_key(number), None, databases[tables.FRAMES])
        self._env.residency.note(A_LOOKUP)
        return None if view is None else (place, view)

    def frame_view(self, number: int) -> memoryview | None:
        if not 0 < number <= tables.MAX_FRAME_NUMBER:
            return None
        self._env.residency.note(A_LOOKUP)
        return self._txn.get(tables.integer_key(number), None, self._dbs[tables.FRAMES])

    def touched(self, view: memoryview) -> None:
        self._env.residency.note(len(view))

    def frames(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        cursor = self._txn.cursor(self._dbs[tables.FRAMES])
        more = cursor.set_range(tables.integer_key(start))
        while more:
            number = _ascending(cursor, start)
            data = bytes(cursor.value())
            self._env.residency.note(len(data))
            yield number, data
            start = number + 1
            more = cursor.next()

    def frame_numbers(self, start: int, count: int) -> list[int]:
        cursor = self._txn.cursor(self._dbs[tables.FRAMES])
        numbers: list[int] = []
        more = cursor.set_range(tables.integer_key(start))
        while more and len(numbers) < count:
            numbers.append(_ascending(cursor, start))
            start = numbers[-1] + 1
            more = cursor.next()
        return numbers

    def _last_frame(self) -> int | None:
        cursor = self._txn.cursor(self._dbs[tables.FRAMES])
        return tables.number_of_key(cursor.key()) if cursor.last() else None

    def frame_heads(self, start: int, count: int = HEADS_AT_ONCE) -> list[tuple[int, bytes, int]]:
        cursor = self._txn.cursor(self._dbs[tables.FRAMES])
        heads: list[tuple[int, bytes, int]] = []
        more = cursor.set_range(tables.integer_key(start))
        while more and len(heads) < count:
            number, view = _ascending(cursor, start), cursor.value()
            heads.append((number, bytes(view[:HEADER_SIZE]), len(view)))
            start = number + 1
            more = cursor.next()
        self._env.residency.note(len(heads) * A_LOOKUP)
        return heads

    def stands(self, table: str, number: int) -> bool:
        return self._txn.get(tables.integer_key(number), db=self._dbs[table]) is not None

    def _log_at(self, seq: int) -> tuple[int, memoryview] | None:
        cursor = self._txn.cursor(self._dbs[tables.LOG])
        if not cursor.set_range(tables.integer_key(max(seq, 0))):
            return self._numbered(cursor) if cursor.last() else None
        if tables.number_of_key(cursor.key()) == seq:
            return self._numbered(cursor)
        return self._numbered(cursor) if cursor.prev() else None

    def _log_after(self, seq: int) -> tuple[int, memoryview] | None:
        cursor = self._txn.cursor(self._dbs[tables.LOG])
        found = cursor.set_range(tables.integer_key(max(seq + 1, 0)))
        return self._numbered(cursor) if found else None

    def _numbered(self, cursor: lmdb.Cursor[memoryview]) -> tuple[int, memoryview]:
        view = cursor.value()
        self._env.residency.note(len(view))
        return tables.number_of_key(cursor.key()), view

    def _keyed(self, table: str) -> Database:
        if table not in tables.KEYED:
            raise BadRequest(f"there is no table {table!r} with byte keys")
        return self._dbs[table]


def _pages(stat: Mapping[str, Any]) -> int:
    pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return int(pages * stat["psize"])


def _ascending(cursor: lmdb.Cursor[memoryview], start: int) -> int:
    """The number at the cursor.  One out of order would make a walk go round for ever."""
    number = tables.number_of_key(cursor.key())
    if not start <= number <= tables.MAX_FRAME_NUMBER:
        raise Damaged(f"frame {number} stands behind frame {start - 1}", kind="damaged")
    return number
