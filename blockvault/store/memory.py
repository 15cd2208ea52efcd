"""The store in dictionaries: the model that the LMDB store is held against, and a store for tests.

A commit is an immutable state: a Reader keeps the one it began with, a Writer works on copies of
the tables it touches and publishes a new state when it is left cleanly.  Nothing is on disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from blockvault.errors import BadRequest, IOFailed
from blockvault.store import format as fmt
from blockvault.store import tables
from blockvault.store.frames import HEADER_SIZE, Frame
from blockvault.store.types import HEADS_AT_ONCE, Options, Reader, Writer, not_the_end

State = dict[str, dict[Any, bytes]]


class MemoryStore:
    """A store that lives as long as this value.  See ``types.Store``."""

    def __init__(self, options: Options, populate: Callable[[Writer], None] | None = None) -> None:
        self.options = fmt.check_options(options)
        self.readonly = False
        self._state: State = {name: {} for name in (*tables.KEYED, *tables.NUMBERED)}
        self._state[tables.META] = dict(fmt.to_meta(options))
        self._version = 1
        self._writing = threading.Lock()
        self._writer: int | None = None
        self._open = True
        if populate is not None:
            with self.write() as writer:
                populate(writer)

    @classmethod
    def create(
        cls, options: Options, populate: Callable[[Writer], None] | None = None
    ) -> MemoryStore:
        return cls(options, populate)

    def read(self) -> MemoryReader:
        self._check_open()
        return MemoryReader(self.options, self._state, self._version)

    def check_writable(self) -> None:
        self._check_open()

    def write(self) -> MemoryWriter:
        self._check_open()
        return MemoryWriter(self)

    def structure(self) -> list[str]:
        return []

    def give_back(self, least: int = 1) -> int:
        return 0

    def close(self) -> None:
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise IOFailed("the vault has been closed", kind="closed")


class MemoryReader(Reader):
    def __init__(self, options: Options, state: State, txn_id: int) -> None:
        self.options = options
        self._tables = state
        self._txn_id = txn_id

    @property
    def txn_id(self) -> int:
        return self._txn_id

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tables = {}

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._keyed(table).get(tables.check_key(key))

    def scan(
        self, table: str, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        rows = self._keyed(table)
        keys = [key for key in rows if start <= key and (stop is None or key < stop)]
        keys.sort(reverse=reverse)
        return iter([(key, rows[key]) for key in keys])

    def table_bytes(self) -> dict[str, int]:
        return {name: sum(map(len, rows.values())) for name, rows in self._tables.items()}

    def locate(self, ids: Sequence[bytes]) -> list[int | None]:
        index = self._tables[tables.INDEX]
        return [int.from_bytes(index[i]) if i in index else None for i in ids]

    def hidden(self, first: int) -> int:
        return 0  # no keys lie above the rows of a dict

    def index_entries(self, first: int) -> bytes:
        index = self._tables[tables.INDEX]
        return b"".join(oid + index[oid][1:] for oid in sorted(index) if oid[0] == first)

    def index_size(self) -> int:
        return len(self._tables[tables.INDEX])

    def indexed(self, ids: Sequence[bytes]) -> set[bytes]:
        return {i for i in ids if i in self._tables[tables.INDEX]}

    def find(self, oid: bytes) -> tuple[int, memoryview] | None:
        place = self.locate((oid,))[0]
        view = None if place is None else self.frame_view(place >> tables.SLOT_BITS)
        return None if place is None or view is None else (place, view)

    def frame_view(self, number: int) -> memoryview | None:
        data = self._tables[tables.FRAMES].get(number)
        return None if data is None else memoryview(data)

    def frames(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        rows = self._tables[tables.FRAMES]
        return iter([(number, rows[number]) for number in sorted(rows) if number >= start])

    def frame_numbers(self, start: int, count: int) -> list[int]:
        return sorted(number for number in self._tables[tables.FRAMES] if number >= start)[:count]

    def _last_frame(self) -> int | None:
        return max(self._tables[tables.FRAMES], default=None)

    def frame_heads(self, start: int, count: int = HEADS_AT_ONCE) -> list[tuple[int, bytes, int]]:
        heads = [(number, data[:HEADER_SIZE], len(data)) for number, data in self.frames(start)]
        return heads[:count]

    def stands(self, table: str, number: int) -> bool:
        return number in self._tables[table]

    def _log_at(self, seq: int) -> tuple[int, bytes] | None:
        log = self._tables[tables.LOG]
        first = max((key for key in log if key <= seq), default=None)
        return None if first is None else (first, log[first])

    def _log_after(self, seq: int) -> tuple[int, bytes] | None:
        log = self._tables[tables.LOG]
        first = min((key for key in log if key > seq), default=None)
        return None if first is None else (first, log[first])

    def _keyed(self, table: str) -> dict[bytes, bytes]:
        if table not in tables.KEYED:
            raise BadRequest(f"there is no table {table!r} with byte keys")
        return self._tables[table]


class MemoryWriter(MemoryReader, Writer):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store.options, {}, 0)
        self._store = store

    def __enter__(self) -> Self:
        if self._store._writer == threading.get_ident():
            raise RuntimeError("write transactions do not nest: this thread is already writing")
        self._store._writing.acquire()
        self._store._writer = threading.get_ident()
        self._tables = dict(self._store._state)
        self._txn_id = self._store._version + 1
        self._copied: set[str] = set()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._store._state, self._store._version = self._tables, self._txn_id
        self._tables = {}
        self._store._writer = None
        self._store._writing.release()

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._keyed(table)
        self._own(table)[tables.check_key(key)] = bytes(value)
        if table == tables.INDEX:
            self._begin_frames_at(self.next_frame() + 1)

    def delete(self, table: str, key: bytes) -> bool:
        self._keyed(table)
        return self._own(table).pop(tables.check_key(key), None) is not None

    def clear(self, table: str) -> None:
        self._keyed(table)
        self._own(table).clear()

    def add_frames(self, frames: Sequence[Frame]) -> None:
        index, stored = self._own(tables.INDEX), self._own(tables.FRAMES)
        for frame in frames:
            known = self.known(frame.ids)
            if known.issuperset(frame.ids):
                continue
            number = self.next_frame()
            stored[number] = frame.data
            for slot, oid in enumerate(frame.ids):
                if oid not in known:
                    index[oid] = tables.pack_location(tables.location(number, slot))
                    known.add(oid)

    def move_frames(self, frames: Sequence[Frame]) -> None:
        index, stored = self._own(tables.INDEX), self._own(tables.FRAMES)
        for number, frame in enumerate(frames, self.next_frame()):
            stored[number] = frame.data
            for slot, oid in enumerate(frame.ids):
                index[oid] = tables.pack_location(tables.location(number, slot))

    def unindex(self, ids: Sequence[bytes]) -> None:
        index, runs = self._own(tables.INDEX), self._own(tables.RUNS)
        for oid in ids:
            index.pop(oid, None)
            runs.pop(oid, None)

    def _delete_frames(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._own(tables.FRAMES).pop(number, None)

    def _log_put(self, first_seq: int, data: bytes) -> None:
        log = self._own(tables.LOG)
        if first_seq <= max(log, default=0):
            raise not_the_end(tables.LOG, first_seq)
        log[first_seq] = data

    def _log_replace(self, keys: Sequence[int], data: bytes) -> None:
        log = self._own(tables.LOG)
        for key in keys:
            del log[key]
        log[keys[0]] = data

    def _own(self, table: str) -> dict[Any, bytes]:
        if table not in self._copied:
            self._tables[table] = dict(self._tables[table])
            self._copied.add(table)
        return self._tables[table]
