"""The write transaction of the LMDB store.

It begins, works and commits in one thread; LMDB would hang the next writer otherwise.  Before it
commits, the Bloom filter hears what it adds to the index; behind it, the head file says how far the
log goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import lmdb

from blockvault.store import faults, rows, tables
from blockvault.store.frames import Frame
from blockvault.store.readtxn import LmdbReader
from blockvault.store.residency import A_LOOKUP
from blockvault.store.shared import Environment
from blockvault.store.types import Reader, Writer, not_the_end

PAGE = 256
"""Rows that a scan in a write transaction takes at a time, so that its table may change."""

READER_CHECK_EVERY = 64
"""Commits between two searches for readers that died: what a dead one pins cannot be reused."""


class LmdbWriter(LmdbReader, Writer):
    """The write transaction; see ``types.Writer``.  Commits when left cleanly."""

    def __init__(self, environment: Environment, timeout: float) -> None:
        super().__init__(environment)
        self._timeout = timeout

    def _begin(self) -> lmdb.Transaction[memoryview]:
        self._tables: dict[str, rows.Rows] = {}
        self._frames_from = 0
        """The frame number before anything was added to the index; 0 if nothing was."""
        self._indexed: list[bytes] = []
        self._queue = self._env.write_queue()
        self._queue.acquire(self._timeout)
        try:
            return self._env.lmdb.begin(write=True, buffers=True)
        except BaseException:
            self._queue.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._env.check_process(self._txn)
        if not self._queue.held_by_me():
            raise RuntimeError("a write transaction ends in the thread that began it")
        try:
            if error is None:
                self._commit()
            else:
                self._txn.abort()
        except lmdb.Error as failure:
            raise faults.from_lmdb(failure, self._env.path) from failure
        finally:
            self._tables.clear()
            del self._txn
            self._queue.release()
            self._env.residency.settle()
            self._env.release()
        if isinstance(error, lmdb.Error):
            raise faults.from_lmdb(error, self._env.path) from error

    @property
    def awaited(self) -> bool:
        return self._queue.wanted()

    def _commit(self) -> None:
        txn_id, last = self._txn.id(), self.last()
        try:
            if self._frames_from:
                self._env.bloom.announce(self._frames_from, self.next_frame(), self._indexed)
            self._txn.commit()
        except BaseException:
            self._env.bloom.failed()
            raise
        # A transaction that changed nothing leaves the number to the next one.
        self.wrote = self._env.lmdb.info()["last_txnid"] == txn_id
        if self._env.head is not None and self.wrote:
            self._env.head.note(txn_id, last)
        if txn_id % READER_CHECK_EVERY == 0:
            self._env.lmdb.reader_check()

    def scan(
        self, table: str, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        while True:
            found = self._rows(table, start, stop, reverse)
            page = [row for row, _ in zip(found, range(PAGE), strict=False)]
            yield from page
            if len(page) < PAGE:
                return
            if reverse:
                stop = page[-1][0]
            else:
                start = page[-1][0] + b"\0"

    def get(self, table: str, key: bytes) -> bytes | None:
        if table == tables.INDEX:
            return super().get(table, key)
        return self._table(table).get(tables.check_key(key))

    def _table(self, table: str) -> rows.Rows:
        """The same rows through one cursor for as long as this lives; not for scans."""
        found = self._tables.get(table)
        if found is None:
            found = self._tables[table] = self._checked(table)
        return found

    def known(self, ids: Sequence[bytes]) -> set[bytes]:
        # What this transaction has added itself is in no filter.
        return Reader.known(self, ids)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        if table == tables.INDEX:
            free = self.next_frame()
            self._index().put(tables.check_key(key), int.from_bytes(value))
            # No frame came with it, so the filters of other processes must hear of it otherwise.
            self._begin_frames_at(free + 1)
            self._note_indexed(free, [key])
            return
        self._table(table).put(tables.check_key(key), value)

    def delete(self, table: str, key: bytes) -> bool:
        if table == tables.INDEX:
            return self._index().delete(tables.check_key(key))
        return self._table(table).delete(tables.check_key(key))

    def clear(self, table: str) -> None:
        self._txn.drop(self._keyed(table), delete=False)
        if table in tables.CHECKED:
            self._table(table).begin()

    def add_frames(self, frames: Sequence[Frame]) -> None:
        index: dict[bytes, int] = {}
        number = free = self.next_frame()
        before = self.txn_id - 1
        unsure = [oid for frame in frames if frame.absent_at != before for oid in frame.ids]
        known = self.known(unsure) if unsure else set()
        for frame in frames:
            if known.issuperset(frame.ids):
                continue
            self._append(tables.FRAMES, number, frame.data)
            base = tables.location(number, 0)
            places = range(base, base + len(frame.ids))
            if known.isdisjoint(frame.ids):
                index.update(zip(frame.ids, places, strict=True))
            else:
                index.update(
                    (oid, place)
                    for oid, place in zip(frame.ids, places, strict=True)
                    if oid not in known
                )
            known.update(frame.ids)
            number += 1
        if self.condemning:
            self._drop_from_index(index)
        self._note_indexed(free, index)
        self._add_to_index(sorted(index.items()))

    def move_frames(self, frames: Sequence[Frame]) -> None:
        free = self.next_frame()
        for number, frame in enumerate(frames, free):
            self._note_indexed(free, frame.ids)
            self._append(tables.FRAMES, number, frame.data)
            places = {oid: tables.location(number, at) for at, oid in enumerate(frame.ids)}
            self._drop_from_index(places)
            self._add_to_index(sorted(places.items()))

    def _add_to_index(self, rows: Sequence[tuple[bytes, int]]) -> None:
        residency, (_, each) = self._env.residency, self._lookups()

        def counted(count: int) -> None:
            residency.note(each * count)
            residency.settle()

        self._index().add(rows, counted)

    def _drop_from_index(self, ids: Iterable[bytes]) -> None:
        """Forget the places of those of these objects that have one."""
        index = self._index()
        for some in self._in_parts(sorted(ids)):
            for oid in some:
                index.delete(oid)

    def unindex(self, ids: Sequence[bytes]) -> None:
        index, runs = self._index(), self._table(tables.RUNS)
        for some in self._in_parts(sorted(ids)):
            for oid in some:
                index.delete(oid)
                runs.delete(oid)
            self._env.residency.note(A_LOOKUP * len(some))

    def _note_indexed(self, free: int, ids: Iterable[bytes]) -> None:
        """These objects are added to the index; before that, ``free`` was the next frame."""
        self._frames_from = self._frames_from or free
        self._indexed += ids

    def tighten_index(self, part: int) -> int:
        return self._index().tighten(part)

    def _delete_frames(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._txn.delete(tables.integer_key(number), db=self._dbs[tables.FRAMES])

    def _log_put(self, first_seq: int, data: bytes) -> None:
        self._append(tables.LOG, first_seq, data)

    def _log_replace(self, keys: Sequence[int], data: bytes) -> None:
        log = self._dbs[tables.LOG]
        for key in keys[1:]:
            self._txn.delete(tables.integer_key(key), db=log)
        self._txn.put(tables.integer_key(keys[0]), data, db=log)

    def _append(self, table: str, number: int, data: bytes) -> None:
        key = tables.integer_key(number)
        if not self._txn.put(key, data, append=True, db=self._dbs[table]):
            raise not_the_end(table, number)
