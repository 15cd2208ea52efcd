"""What a store is: short read snapshots, exclusive write transactions, and the log in between.

``LmdbStore`` and ``MemoryStore`` behave alike; the contract tests run on both.  A concrete store
supplies tables of bytes; the log's rules (order, clock, chain) stand here once, on top of them.

A Reader sees one commit for as long as it lives.  Keep it short: while it lives the file cannot
reuse what later commits free.  Readers and writers belong to the thread that began them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from blockvault.encoding import pack, unpack
from blockvault.errors import BadRequest, Damaged
from blockvault.store import eventlog, tables
from blockvault.store.codec import Codec
from blockvault.store.eventlog import Last, Record
from blockvault.store.frames import Frame

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

    def structure(self) -> list[str]:
        """What is wrong with the database under the tables; empty if nothing is."""
        ...

    def give_back(self) -> int:
        """Give unused space back to the file system; return how many bytes that is."""
        ...

    def close(self) -> None:
        """Idempotent.  Transactions that are open keep working until they end."""
        ...


class Reader(ABC):
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
    def frame_heads(self, start: int, count: int) -> list[tuple[int, bytes, int]]:
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

    # log

    @abstractmethod
    def _log_at(self, seq: int) -> tuple[int, bytes | memoryview] | None:
        """The record with the greatest key <= seq, as (key, bytes)."""

    @abstractmethod
    def _log_after(self, seq: int) -> tuple[int, bytes | memoryview] | None:
        """The record with the smallest key > seq, as (key, bytes)."""

    def last(self) -> Last:
        """(seq, time_us, chain) of the end of the log; (0, 0, chain_0) of an empty one."""
        found = self._log_at(tables.MAX_NUMBER)
        if found is None:
            return Last(0, 0, eventlog.genesis(self.options.vault_id))
        return eventlog.peek(*found)

    def record(self, seq: int) -> Record | None:
        """The record that holds event ``seq``; None beyond the ends of the log.

        It is checked against the record before it, so ``Damaged`` means one of the two.
        """
        found = self._log_at(seq)
        if found is None:
            return None
        first, data = found
        if seq > eventlog.peek(first, data).seq:
            return None
        return eventlog.decode(first, data, self._chain_before(first))

    def records(self, start_seq: int = 1, stop_seq: int | None = None) -> Iterator[Record]:
        """Records in order: from the one that holds ``start_seq``, while first_seq < stop_seq."""
        stop = tables.MAX_NUMBER if stop_seq is None else stop_seq
        found = self._log_at(start_seq)
        if found is None or eventlog.peek(*found).seq < start_seq:
            found = self._log_after(start_seq)
        if found is None or found[0] >= stop:
            return
        chain = self._chain_before(found[0])
        while found is not None and found[0] < stop:
            record = eventlog.decode(*found, chain)
            chain = record.chain
            yield record
            found = self._log_after(record.first_seq)
            if found is not None and found[0] != record.last_seq + 1:
                raise _gap(record.last_seq + 1)

    def record_at(self, time_us: int) -> int:
        """The key of the first record whose time is at or after a moment; a few lookups."""
        low, high = 1, self.last().seq + 1
        while low < high:
            found = self._log_at((low + high) // 2)
            if found is None:
                low = (low + high) // 2 + 1
                continue
            end = eventlog.peek(*found)
            if end.time_us < time_us:
                low = end.seq + 1
            else:
                high = found[0]
        return low

    def chain_before(self, first_seq: int) -> bytes:
        """The chain value that the record with this key continues."""
        return self._chain_before(first_seq)

    def _chain_before(self, first_seq: int) -> bytes:
        if first_seq == 1:
            return eventlog.genesis(self.options.vault_id)
        found = self._log_at(first_seq - 1)
        before = None if found is None else eventlog.peek(*found)
        if before is None or before.seq != first_seq - 1:
            raise _gap(first_seq - 1)
        return before.chain


class Writer(Reader):
    """The one write transaction: a Reader that sees its own changes."""

    _end: Last | None = None

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for this transaction to end, as far as anyone can tell."""
        return False

    def last(self) -> Last:
        # Nobody else appends meanwhile, and a commit asks several times.
        if self._end is None:
            self._end = super().last()
        return self._end

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

    @abstractmethod
    def _log_put(self, first_seq: int, data: bytes) -> None: ...

    @abstractmethod
    def _log_replace(self, keys: Sequence[int], data: bytes) -> None:
        """Delete the records with these keys and put another one under the first."""

    def forget_records(self, first_seq: int, stop_seq: int, limit: int) -> int:
        """Put a gap in the place of the records with first_seq <= key < ``stop_seq``, at most
        ``limit`` (two or more) at a time; return how many there were, gaps included.

        Both ends are keys of records.  Call it until it returns 1: then one gap is left.
        """
        keys: list[int] = []
        end = Last(0, 0, b"")
        found = self._log_at(first_seq)
        while found is not None and found[0] < stop_seq and len(keys) < limit:
            keys.append(found[0])
            end = eventlog.peek(*found)
            found = self._log_after(found[0])
        if not keys or (len(keys) == 1 and eventlog.is_gap(self._log_at(first_seq))):
            return len(keys)
        if keys[0] != first_seq or end.seq >= stop_seq:
            raise BadRequest(f"no run of records is from {first_seq} to {stop_seq}")
        gap = Record(first_seq, end.seq - first_seq + 1, end.time_us, b"", end.chain, pruned=True)
        self._log_replace(keys, eventlog.encode(gap, self._log_codec()))
        return len(keys)

    def append(self, payload: bytes, count: int, time_us: int) -> int:
        """Append one record of ``count`` events with these packed rows; return its first seq.

        A clock that went backwards is clamped to the previous record's time: ``last()`` tells.
        """
        if count < 1:
            raise BadRequest("a log record holds at least one event")
        last = self.last()
        first, time_us = last.seq + 1, max(time_us, last.time_us)
        chain = eventlog.next_chain(last.chain, first, time_us, count, payload)
        record = Record(first, count, time_us, payload, chain)
        self._log_put(first, eventlog.encode(record, self._log_codec()))
        self._end = Last(record.last_seq, time_us, chain)
        return first

    def _log_codec(self) -> Codec:
        return Codec(self.options.compression)


def not_the_end(table: str, number: int) -> Damaged:
    """What appending raises when the table already holds that number or a greater one."""
    return Damaged(f"{number} is not the end of the table {table!r}: its order is damaged")


def _gap(seq: int) -> Damaged:
    return Damaged(f"the log has no record of event {seq}", kind="broken-chain")
