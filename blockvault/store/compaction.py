"""The data file written anew without its free pages, while nobody else has the vault.

``lock.mdb`` and the head file are locked as LMDB and the writers' queue lock them, so whoever opens
the vault meanwhile waits.  The copy is made beside the file, walked page by page, synced, and
renamed over it: at any moment there is one whole data file under the name.  The copy's transaction
numbers begin anew, so the head file, which knows the old ones, is emptied before the rename, and
LMDB's lock file takes the new one before anybody else is let in.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import lmdb
from lmdb import verify as lmdb_verify

from blockvault import files
from blockvault.errors import Busy, Damaged
from blockvault.store import env, faults, filesystem, scratch, shared, tables

BUILDING = ".compact-"
"""Begins the name of a directory for the copy."""

_COMMIT_BYTES = 16 << 20


class Compacted(NamedTuple):
    """Bytes that the data file takes on the disk, before and after."""

    before: int
    after: int


def compact(path: Path) -> Compacted:
    """Write ``path``'s data file anew; the vault must not be open, here or anywhere else.

    ``Busy`` if it is, ``NoSpace`` if there is no room for the copy; then nothing has changed.
    """
    data = path / shared.DATA
    try:
        with alone(path) as head:
            before = _taken(data)
            scratch.clean(path, BUILDING)
            with scratch.folder(path, BUILDING) as building:
                _copy(path, building)
                _replace(building / shared.DATA, data, head)
                _renumber(path)
    except lmdb.Error as error:
        raise faults.from_lmdb(error, path) from error
    except OSError as error:
        raise faults.from_os(error, path) from error
    _note_head(path)
    return Compacted(before, _taken(data))


@contextmanager
def alone(path: Path) -> Iterator[int]:
    """Hold the vault as its only process; yields the descriptor of the head file."""
    shared.refuse_open(path / shared.DATA)
    lock = files.opened(path / shared.LOCK)
    head = files.opened(path / shared.HEAD)
    try:
        _lock(path, lock, head)
        yield head
    finally:
        os.close(lock)
        filesystem.close_locked(head)


def _lock(path: Path, lock: int, head: int) -> None:
    try:
        fcntl.flock(head, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # LMDB holds a shared lock on the first byte of lock.mdb as long as it is open.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise Busy(
            f"{path}: another process has the vault open; nothing was changed. End servers "
            "and other commands, then try again."
        ) from None


def _copy(path: Path, building: Path) -> None:
    """All tables, row by row in order: pages come out full, and one behind the other.

    LMDB's own compacting copy is not used: it crashed on vaults whose index has many pages.
    """
    copied = building / shared.DATA
    # LMDB takes an empty file for a new one.  The descriptor is of ours whatever becomes of the
    # name: root gives nothing else away.
    made = os.open(copied, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _copy_tables(path, building)
        problems = list(map(str, lmdb_verify.verify(copied)))  # type: ignore[no-untyped-call]
        if problems:
            raise Damaged(f"{path}: the copy is not whole, nothing was changed: {problems[0]}")
        files.give(made, path)
        os.fsync(made)
    finally:
        os.close(made)


def _copy_tables(path: Path, building: Path) -> None:
    filesystem.prepare_lock_file(building / shared.LOCK)
    old = shared.open_lmdb(path, readonly=True, lock=False)
    try:
        new = shared.open_lmdb(building, readonly=False, lock=True)
        try:
            for name in (*tables.KEYED, *tables.NUMBERED):
                found, expected = _copy_table(old, new, name)
                if found != expected:
                    raise _rows_missing(path, name, found, expected)
        finally:
            new.close()
    finally:
        old.close()


def _copy_table(old: lmdb.Environment, new: lmdb.Environment, name: str) -> tuple[int, int]:
    """Rows that were copied, and that the table says it has.

    Appending passes over a row that is not behind the last one: a damaged key hides those after it.
    """
    flags = tables.FLAGS.get(name, {})
    source = old.open_db(name.encode(), txn=None, create=False, **flags)
    target = new.open_db(name.encode(), txn=None, create=True, **flags)
    copied = 0
    with old.begin() as reading:
        rows: Iterator[tuple[bytes, bytes]] = iter(reading.cursor(source))
        while some := list(_up_to(rows, _COMMIT_BYTES)):
            with new.begin(write=True) as txn:
                copied += txn.cursor(target).putmulti(some, dupdata=True, append=True)[1]
        return copied, reading.stat(source)["entries"]


def _up_to(rows: Iterator[tuple[bytes, bytes]], limit: int) -> Iterator[tuple[bytes, bytes]]:
    """The next rows, of about so many bytes."""
    size = 0
    for row in rows:
        yield row
        size += len(row[0]) + len(row[1])
        if size >= limit:
            return


def _rows_missing(path: Path, name: str, copied: int, expected: int) -> Damaged:
    return Damaged(
        f"{path}: the table '{name}' is damaged: {copied:,} of its {expected:,} rows come out in "
        "order. Nothing was changed. 'blockvault verify' says what is damaged, 'blockvault repair' "
        "mends what follows from the log; for the rest restore a copy.",
        kind="structure-damaged",
    )


def _replace(copied: Path, data: Path, head: int) -> None:
    os.ftruncate(head, 0)
    os.fsync(head)
    os.rename(copied, data)
    filesystem.sync_path(data.parent)


def _renumber(path: Path) -> None:
    """``lock.mdb`` gets the transaction number of the new file.

    LMDB sets it only for an opener that has the file alone, as we do: whom our lock kept waiting
    would go on with the old number, whose parity says which meta page counts, and so perhaps
    without the last commit.
    """
    shared.open_lmdb(path, readonly=False, lock=True).close()


def _note_head(path: Path) -> None:
    """One small commit, so that the head file watches over the new numbers."""
    with env.LmdbStore.open(path) as store, store.write() as writer:
        value = writer.get(tables.META, b"format")
        if value is not None:
            writer.put(tables.META, b"format", value)


def _taken(path: Path) -> int:
    return path.stat().st_blocks * 512
