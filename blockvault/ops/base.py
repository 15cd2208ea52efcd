"""Where a replay of the log begins: at the newest prune's event, or at the first record."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from blockvault.encoding import unpack
from blockvault.errors import Damaged
from blockvault.model import events
from blockvault.model.rows import Row, unpack_rows
from blockvault.store import tables

if TYPE_CHECKING:
    from blockvault.store.eventlog import Record
    from blockvault.store.types import Reader
    from blockvault.vault import Vault


ROW = b"base"
"""The row of ``meta`` that names the newest prune's event."""


class Base(NamedTuple):
    """The newest prune: its record, its only row, and the runs of older records that it kept."""

    record: Record
    row: Row

    @property
    def seq(self) -> int:
        return self.record.first_seq

    @property
    def kept(self) -> tuple[tuple[int, int, bytes], ...]:
        runs: tuple[tuple[int, int, bytes], ...] = self.row[2]
        return runs

    @property
    def forgotten(self) -> list[tuple[int, int]]:
        """(first, stop) of the older records that it did not keep, ascending."""
        starts = [1, *(stop for _, stop, _ in self.kept)]
        stops = [*(first for first, _, _ in self.kept), self.seq]
        return [(first, stop) for first, stop in zip(starts, stops, strict=True) if first < stop]


class Account:
    """What a prune says of gaps in the log; asked for many, with many runs that it kept."""

    def __init__(self, prune: Base) -> None:
        runs = sorted(prune.kept)
        self._seq = prune.seq
        self._starts = [first for first, _, _ in runs]
        self._chains = [chain for _, _, chain in runs]
        # How far any run goes up to here: those of a damaged log may overlap.
        self._reach = list(accumulate((stop for _, stop, _ in runs), max))

    def accounts_for(self, gap: Record) -> bool:
        """Whether the prune forgot those records, and says the same of how the log goes on."""
        end = gap.last_seq + 1
        at = bisect_left(self._starts, end)
        apart = not at or self._reach[at - 1] <= gap.first_seq
        ahead = self._chains[at : bisect_right(self._starts, end, at)]
        return apart and end <= self._seq and all(chain == gap.chain for chain in ahead)

    def needs(self, record: Record) -> bool:
        """Whether the prune left the record, or a part of it, in the log."""
        at = bisect_right(self._starts, record.last_seq)
        return record.last_seq >= self._seq or bool(at and self._reach[at - 1] > record.first_seq)


def newest_account(vault: Vault) -> Account | None:
    """What the newest prune says; None if there is none."""
    latest = find(vault)
    return Account(latest) if latest else None


def find(vault: Vault) -> Base | None:
    """The newest prune of the vault, from the row in ``meta`` that names it."""
    with vault.read() as reader:
        return of(reader)


def of(reader: Reader) -> Base | None:
    """The same, as the tables are in one transaction."""
    data = reader.get(tables.META, ROW)
    record = None if data is None else reader.record(int(unpack(data, "base")))
    return None if record is None else _of(record)


def search(vault: Vault) -> Base | None:
    """The newest prune of the vault, from the log alone."""
    found = None
    for record in records(vault):
        found = _of(record) or found
    return found


def after(vault: Vault, seq: int) -> Base:
    """The newest prune, which must be beyond event ``seq``, where the log has a gap."""
    for look in (find, search):
        found = look(vault)
        if found is not None and found.seq > seq:
            return found
    raise Damaged(f"no prune accounts for the gap in the log at event {seq}", kind="broken-chain")


def records(vault: Vault, start: int = 1, stop: int | None = None) -> Iterator[Record]:
    """The records from event ``start`` on, each read in a transaction of its own; gaps too."""
    while True:
        with vault.read() as reader:
            last = reader.last().seq if stop is None else stop - 1
            record = reader.record(start) if start <= last else None
        if start > last:
            return
        if record is None:
            raise Damaged(f"the log has no record of event {start}", kind="broken-chain")
        yield record
        start = record.last_seq + 1


def rows_of(record: Record) -> list[Row]:
    """The rows of a record; none of a gap."""
    return [] if record.pruned else unpack_rows(record.payload)


def _of(record: Record) -> Base | None:
    rows = rows_of(record) if record.count == 1 else []
    if len(rows) == 1 and rows[0][0] == events.PRUNED:
        return Base(record, rows[0])
    return None
