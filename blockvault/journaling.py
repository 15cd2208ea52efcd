"""Flushes that do not wait for the tables: the session's side of the journal.

A guest that flushes often gets a journal (``store.journal``) for its session: a flush appends what
was written since the last one, which is one sync of a file that is ready for it, and the commit to
the tables follows within ``SETTLE_SECONDS``.  What a flush has to append is little, else a commit
costs no more; and a guest that flushes rarely never gets a journal.

The commit says in the table ``meta`` which entries of which journal it has stored, so whoever opens
the branch after a crash takes exactly the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from blockvault.encoding import pack, unpack
from blockvault.errors import Damaged, VaultError
from blockvault.model import events
from blockvault.pending import Entry, Pending
from blockvault.store import tables
from blockvault.store.journal import Entries, Journal

if TYPE_CHECKING:
    from blockvault.head import HeadDevice
    from blockvault.store.types import Writer
    from blockvault.vault import Vault

AFTER_FLUSHES = 16
"""Flushes of a session after which it gets a journal."""
APPENDED_BYTES = 1 << 20
"""Bytes of writes that a flush appends at most; with more of them a commit costs no more."""
SETTLE_SECONDS = 0.2
"""How long the tables may be behind the journal."""


class _Missing(NamedTuple):
    """Entries ``first`` to ``stop - 1``, which the journal lacks; the tables have ``stored``."""

    first: int
    stop: int
    entries: Sequence[Entry]
    stored: int


class Journaling:
    """The journal of one session, once it has one; safe to use from several threads."""

    def __init__(self, vault: Vault, branch: int, pending: Pending) -> None:
        self._vault = vault
        self._branch = branch
        self._pending = pending
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._wanted = True
        self._flushes = 0
        self.journaled = 0
        """The number behind the last entry that the journal has."""

    @property
    def in_use(self) -> bool:
        return self._journal is not None and self._wanted

    def promise(self) -> int:
        """Append what was taken so far, unless that is done already; the number behind it, or -1.

        -1 means that the tables must do it: there is no journal yet, or it has no room, or a
        commit that is under way has entries that the journal has not.
        """
        with self._lock:
            self._flushes += 1
            journal = self._journal or self._begin()
            if journal is None or not self._wanted:
                return -1
            with self._pending.mutex:
                missing = self._missing()
                if missing is None:
                    return -1
                self._pending.add_barrier(events.now_us())
            return missing.stop if self._append(journal, missing) else -1

    def ahead(self) -> None:
        """Append what was taken so far, since a flush is likely to follow at once.

        Without one nothing is promised; but a record that is found after a crash ends with a
        barrier all the same: what it holds was written in this order, so the disk may be so.
        """
        with self._lock:
            if self._journal is None or not self._wanted:
                return
            with self._pending.mutex:
                missing = self._missing()
            if missing is not None:
                self._append(self._journal, missing)

    def _missing(self) -> _Missing | None:
        """What neither tables nor journal have; None if a commit took some.  Under the mutex."""
        pending = self._pending
        first, stop = max(self.journaled, pending.stored), pending.taken
        if first < pending.base:
            return None
        return _Missing(first, stop, pending.since(first), pending.stored)

    def _append(self, journal: Journal, missing: _Missing) -> bool:
        """Append these entries, if there are any; False if the tables must store them."""
        first, stop, entries, stored = missing
        if first == stop:
            return True
        if _weight(entries) > APPENDED_BYTES:
            return False
        try:
            if not journal.append(first, stop, [events.now_us(), *map(_row, entries)], stored):
                return False
        except VaultError:
            # Commits go on saying what they store: the file may hold promises all the same.
            self._wanted = False
            return False
        self.journaled = stop
        return True

    def _begin(self) -> Journal | None:
        if self._wanted and self._flushes > AFTER_FLUSHES:
            try:
                self._journal = Journal.create(self._vault.path, self._branch)
            except VaultError:
                self._wanted = False  # a disk without room for it: everything goes to the tables
        return self._journal

    def note(self, writer: Writer, stored: int) -> None:
        """Say in the commit that is being made that it stores the entries before ``stored``."""
        if self._journal is not None:
            writer.put(tables.META, _key(self._branch), pack([self._journal.name, stored]))

    def recover(self, devices: dict[str, HeadDevice]) -> bool:
        """Take what a killed session promised and did not store; False if there is nothing.

        The entries are pending then, as they were; the caller commits, and then calls ``end``.
        """
        journal = Journal.find(self._vault.path, self._branch)
        if journal is None:
            return False
        self._journal = journal
        stored = self._stored(journal)
        records = journal.entries(stored)
        if stored is None:
            stored = records[0].first if records else 0
        self._pending.base = self._pending.stored = self.journaled = stored
        for record in records:
            self._take(record, devices)
        return True

    def _stored(self, journal: Journal) -> int | None:
        """Up to where the tables have the journal's entries; None if they know nothing of it."""
        with self._vault.read() as reader:
            data = reader.get(tables.META, _key(self._branch))
        if data is None:
            return None
        name, stored = unpack(data, "the place in the journal")
        return int(stored) if name == journal.name else None

    def _take(self, record: Entries, devices: dict[str, HeadDevice]) -> None:
        time_us, *rows = record.rows
        pending = self._pending
        for number, (written, volume, offset, length, code, data) in enumerate(rows, record.first):
            if number < pending.taken:
                continue
            device = devices.get(volume)
            if device is None:
                raise Damaged(f"the journal names a volume '{volume}' that is not there")
            device.restore(written, offset, length, code, data)
        pending.add_barrier(time_us)
        self.journaled = pending.taken

    def end(self) -> None:
        """The tables have everything: remove the journal."""
        with self._lock:
            if self._journal is not None:
                self._journal.remove()
                self._journal = None
            self._wanted = False

    def abandon(self) -> None:
        """Leave the journal to whoever opens the branch next."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()
                self._journal = None
            self._wanted = False


def _key(branch: int) -> bytes:
    return b"journal/%d" % branch


def _weight(entries: Sequence[Entry]) -> int:
    return sum([sum(map(len, what)) for *_, what in entries if not isinstance(what[0], int)])


def _row(entry: Entry) -> tuple[Any, ...]:
    """An entry as the journal keeps it: code 0 and whole blocks, or the code of a clear."""
    time_us, device, offset, length, what = entry
    if isinstance(what[0], int):
        return time_us, device.name, offset, length, what[0], b""
    return time_us, device.name, offset, length, 0, b"".join(what)
