"""What a store is: short read snapshots, exclusive write transactions, and the log in between.

``LmdbStore`` and ``MemoryStore`` behave alike; the contract tests run on both.  A concrete store
supplies tables of bytes; the log's rules stand in ``chained``, on top of them.

A Reader sees one commit for as long as it lives.  Keep it short: while it lives the file cannot
reuse what later commits free.  Readers and writers belong to the thread that began them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence, Set
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from blockvault.encoding import pack, unpack
from blockvault.errors import Damaged
from blockvault.store import tables
from blockvault.store.chained import LogReader, LogWriter
from blockvault.store.eventlog import Last, Record
from blockvault.store.frames import Frame

HEADS_AT_ONCE = 64
"""Heads of frames that are read at once: of a large file the kernel maps up to 256 KiB for each."""

CONDEMNED = b"condemned"
"""The row of ``meta`` that is there while a collection has condemned objects."""

__all__ = ["Last", "Options", "Reader", "Record", "Store", "Writer"]


class Options(NamedTuple):
    """What is chosen once, when a vault is made."""

    vault_id: bytes
    block_size: int
    compression: str
    features: tuple[str, ...] = ()
    """Required ones; see ``format``."""


class Store(Protocol):
    """A vault's storage.  All methods may be called from several threads."""

    @property
    def options(self) -> Options: ...
    @property
    def readonly(self) -> bool: ...
    def read(self) -> Reader:
        """A context manager: the newest commit, as a snapshot."""
        ...

    def write(self) -> Writer:
        """A context manager: commits when left cleanly, aborts when an exception leaves it.

        ``Busy`` if another writer does not finish in time, ``NoSpace`` and ``IOFailed`` if the
        commit cannot be made durable; then nothing of it is there.
        """
        ...

    def check_writable(self) -> None:
        """``Busy`` or ``IOFailed`` if nothing can be written however long this store is open.

        For those who are going to write much later; others hear it from ``write``.
        """
        ...

    def structure(self) -> list[str]:
        """What is wrong with the database under the tables; empty if nothing is."""
        ...

    def give_back(self, least: int = 1) -> int:
        """Give unused pages back to the file system, ``least`` in a row; return the bytes."""
        ...

    def close(self) -> None:
        """Idempotent.  Transactions that are open keep working until they end."""
        ...


class Reader(LogReader):
    """A snapshot of the store.  Everything it returns, views aside, is a copy and may be kept."""

    options: Options

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    # tables

    @abstractmethod
    def get(self, table: str, key: bytes) -> bytes | None: ...

    @abstractmethod
    def scan(
        self, table: str, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop in key order, or the same rows backwards.

        In a Writer, rows may be put and deleted during a scan: it never fails or repeats a row,
        and may or may not show those changes.
        """

    def suspicious(self, table: str) -> Iterator[tuple[bytes, bytes | None]]:
        """All rows of a table, None for the value of one that is damaged; for those who mend it."""
        yield from self.scan(table)

    @property
    @abstractmethod
    def txn_id(self) -> int:
        """The number of the commit that is read; in a Writer, of the one that is being made."""

    @abstractmethod
    def table_bytes(self) -> dict[str, int]:
        """What each table takes, in bytes of whole pages; in memory, bytes of its rows."""

    # objects

    @abstractmethod
    def locate(self, ids: Sequence[bytes]) -> list[int | None]:
        """For each id its location (``tables.split_location``), or None if it is not stored."""

    def places(self, first: int, ids: Set[bytes]) -> list[int]:
        """The locations of those of ``ids`` that are stored, in any order; all begin with the byte
        ``first``.  For a large part of all objects: what the index says is read once for many.
        """
        return [place for place in self.locate(list(ids)) if place is not None]

    @abstractmethod
    def hidden(self, first: int) -> int:
        """How many entries of ``index_entries(first)`` are not found when they are asked for.

        What a walk over the index has met is hidden by a damaged key above it.
        """

    @abstractmethod
    def index_entries(self, first: int) -> bytes:
        """The index of ids whose first byte is ``first``: id ‖ place (7 bytes), one after another.

        The quick way to go through all of it, and 256 times less than all at a time.
        """

    @abstractmethod
    def index_size(self) -> int:
        """How many objects are indexed."""

    @abstractmethod
    def indexed(self, ids: Sequence[bytes]) -> set[bytes]:
        """Those of ``ids`` that are stored."""

    def known(self, ids: Sequence[bytes]) -> set[bytes]:
        """Those of ``ids`` that new events may name: stored, and not condemned by a collection.

        A condemned object is stored once more by whoever needs it, and is then known again.
        """
        if not self.condemning:
            return self.indexed(ids)
        rows: dict[int, int] = {}
        found = set()
        for oid, place in zip(ids, self.locate(ids), strict=True):
            if place is None:
                continue
            number, slot = tables.split_location(place)
            if number not in rows:
                rows[number] = self.dead_slots(number)
            if not rows[number] >> slot & 1:
                found.add(oid)
        return found

    @property
    def condemning(self) -> bool:
        """Whether dead objects may still be in the index."""
        return self.get(tables.META, CONDEMNED) is not None

    def dead_slots(self, number: int) -> int:
        """The places in a frame whose objects a collection found dead, as bits."""
        return int.from_bytes(self.get(tables.DEAD, tables.u64_key(number)) or b"", "little")

    def all_dead_slots(self) -> dict[int, int]:
        """``dead_slots`` of each frame that has any, by its number."""
        rows = self.scan(tables.DEAD)
        return {int.from_bytes(key): int.from_bytes(slots, "little") for key, slots in rows}

    def newest_frame(self) -> int:
        """The greatest frame number there is; 0 if there is none."""
        return self._last_frame() or 0

    def next_frame(self) -> int:
        """The number that the next frame will have; it never goes back."""
        kept = self.get(tables.META, b"next_frame")
        floor = 1 if kept is None else unpack(kept, "the next frame's number")
        return int(max(floor, self.newest_frame() + 1))

    @abstractmethod
    def _last_frame(self) -> int | None: ...

    @abstractmethod
    def frame_heads(self, start: int, count: int = HEADS_AT_ONCE) -> list[tuple[int, bytes, int]]:
        """(number, first bytes, length) of up to ``count`` encoded frames from number ``start``."""

    @abstractmethod
    def find(self, oid: bytes) -> tuple[int, memoryview] | None:
        """An object's location and its encoded frame, as by ``locate`` and ``frame_view``."""

    @abstractmethod
    def frame_view(self, number: int) -> memoryview | None:
        """An encoded frame where it lies: valid only until this transaction ends."""

    @abstractmethod
    def frames(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """(number, encoded frame) from number ``start`` on, ascending."""

    @abstractmethod
    def frame_numbers(self, start: int, count: int) -> list[int]:
        """Up to ``count`` numbers of frames from ``start`` on, ascending; reads none of them."""

    def touched(self, view: memoryview) -> None:
        """Say that all of a view was read, where that counts as memory."""
        return

    def frame(self, number: int) -> bytes | None:
        """An encoded frame, copied."""
        view = self.frame_view(number)
        if view is None:
            return None
        self.touched(view)
        return bytes(view)

    @abstractmethod
    def stands(self, table: str, number: int) -> bool:
        """Whether a row of ``frames`` or ``log`` is found by its number.

        Where a key above the rows is damaged, a walk over all of them may still meet it.
        """


class Writer(LogWriter, Reader):
    """The one write transaction: a Reader that sees its own changes."""

    wrote = True
    """After the end: False if nothing was changed, so that the number went to the next commit."""

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for this transaction to end."""
        return False

    @abstractmethod
    def put(self, table: str, key: bytes, value: bytes) -> None: ...

    @abstractmethod
    def delete(self, table: str, key: bytes) -> bool:
        """True if there was such a row."""

    @abstractmethod
    def clear(self, table: str) -> None:
        """Delete all rows of a table."""

    @abstractmethod
    def add_frames(self, frames: Sequence[Frame]) -> None:
        """Store frames under new numbers and index their objects, except those already known.

        A frame of which every object is already known is not stored.
        """

    @abstractmethod
    def move_frames(self, frames: Sequence[Frame]) -> None:
        """Store frames under new numbers and let the index point there for all their objects."""

    @abstractmethod
    def unindex(self, ids: Sequence[bytes]) -> None:
        """Forget where these objects are, and what the table ``runs`` says of them."""

    def tighten_index(self, part: int) -> int:
        """Write one of the ``tables.INDEX_PARTS`` parts of the index anew, without its gaps.

        Return how many rows it has; 0 where there are no gaps.
        """
        return 0

    def set_dead(self, number: int, slots: int) -> None:
        """Record the dead places of a frame, as bits; 0 removes the row."""
        key = tables.u64_key(number)
        if slots:
            self.put(tables.DEAD, key, slots.to_bytes(-(-slots.bit_length() // 8), "little"))
        else:
            self.delete(tables.DEAD, key)

    def condemn(self, on: bool) -> None:
        """Say whether dead objects may still be in the index, so that ``known`` must look."""
        if on:
            self.put(tables.META, CONDEMNED, pack(True))
        else:
            self.delete(tables.META, CONDEMNED)

    def drop_frames(self, numbers: Sequence[int]) -> None:
        """Delete frames; their index rows are the caller's to delete.

        Frame numbers are never reused, so that whoever keeps a decoded frame may trust its number.
        """
        free = self.next_frame()
        self._delete_frames(numbers)
        if self.next_frame() != free:
            self._begin_frames_at(free)

    def _begin_frames_at(self, number: int) -> None:
        """Leave the numbers before this one free for ever."""
        self.put(tables.META, b"next_frame", pack(number))

    @abstractmethod
    def _delete_frames(self, numbers: Sequence[int]) -> None: ...


def not_the_end(table: str, number: int) -> Damaged:
    """What appending raises when the table already holds that number or a greater one."""
    return Damaged(f"{number} is not the end of the table {table!r}: its order is damaged")
