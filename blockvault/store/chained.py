"""The log on top of a table of records: their order, their clock, and the chain through them.

A record is kept under the number of its first event, and continues the chain value of the one
before it (``eventlog``).  A store says how records are found and put; what they must be is said
here once, for all stores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from blockvault.errors import BadRequest, Damaged
from blockvault.store import eventlog, tables
from blockvault.store.codec import Codec
from blockvault.store.eventlog import Last, Record

if TYPE_CHECKING:
    from blockvault.store.types import Options


class LogReader(ABC):
    """The log as of one commit."""

    options: Options

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


class LogWriter(LogReader):
    """The log while it grows, or loses what was forgotten."""

    _end: Last | None = None

    def last(self) -> Last:
        # Nobody else appends meanwhile, and a commit asks several times.
        if self._end is None:
            self._end = super().last()
        return self._end

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


def _gap(seq: int) -> Damaged:
    return Damaged(f"the log has no record of event {seq}", kind="broken-chain")
