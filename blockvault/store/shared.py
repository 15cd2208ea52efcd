"""One LMDB environment per file and process, shared by everybody who opens it.

Opening the same environment twice in a process is not allowed: its locks are POSIX locks, which
belong to the process, and the first close would drop those of the other.  So a registry, keyed by
the inode of ``data.mdb``, hands out one ``Environment`` and counts its users.  Every store that is
open and every transaction that runs is a user, and the last one closes it: nothing is unmapped
under a reader's feet.

A forked child must not touch what its parent opened: map, locks and reader slots are the parent's.
The stores that it inherited refuse to work, and it cannot open the same vault either, since py-lmdb
takes it for the same process.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import cast

import lmdb

from blockvault.errors import Busy, Damaged, IOFailed, NotFound, VaultError
from blockvault.store import faults, filesystem, pages, rows, tables
from blockvault.store import format as fmt
from blockvault.store.bloom import Bloom
from blockvault.store.headfile import HeadFile
from blockvault.store.residency import Residency
from blockvault.store.types import Options
from blockvault.store.writelock import WriteLock

DATA, LOCK, HEAD = "data.mdb", "lock.mdb", "head"
MAX_TABLES = 32
Database = lmdb._Database

_registry: dict[tuple[int, int], Environment] = {}
_registry_lock = threading.RLock()
_left_behind: list[object] = []
_parents_files: set[tuple[int, int]] = set()

_FORKED = (
    "the vault was opened before this process was forked, and cannot be used on both sides: open "
    "it after the fork, or start the process in another way ('spawn', subprocess)"
)


class Environment:
    """An open LMDB environment with its tables, head file and writers' queue."""

    def __init__(self, path: Path, wait: float) -> None:
        """Open it; wait at most so many seconds for a writer before doing without writing."""
        self.path = path
        self.writable = filesystem.may_write(path / DATA)
        self.lockless = not self.writable and not _can_lock(path)
        self.writers: WriteLock | None = None
        self.head: HeadFile | None = None
        self.databases: dict[str, Database] = {}
        self.residency = Residency(path / DATA, pages.MAP_SIZE)
        self.bloom = Bloom(path)
        self._guard = threading.Lock()
        self._users = 1
        self._unusable = "the vault has been closed"
        pages.inspect(path / DATA)
        if not self.lockless:
            filesystem.prepare_lock_file(path / LOCK)
        if self.writable or (path / HEAD).exists():
            self.head = HeadFile(path / HEAD, writable=self.writable)
        try:
            self._load(wait)
        except BaseException:
            self._shut()
            raise

    def _load(self, wait: float) -> None:
        # LMDB keeps a table's handle only if its transaction commits, and py-lmdb commits read
        # transactions only where nothing can be written: so loading takes the writers' turn once.
        # If a writer does not finish, reading must go on: then LMDB is opened read-only.
        queue = WriteLock(self.head.descriptor) if self.writable and self.head else None
        if queue is not None and queue.try_acquire(wait):
            self.writers = queue
            try:
                self.lmdb = open_lmdb(self.path, readonly=False, lock=True)
                with self.lmdb.begin(write=True) as txn:
                    self._refuse_stale_lock_file(txn)
                    self._open_tables(txn)
            finally:
                queue.release()
        else:
            self.lmdb = open_lmdb(self.path, readonly=True, lock=not self.lockless)
            self._open_tables(None)
        if not self.lockless:
            self.lmdb.reader_check()

    def _refuse_stale_lock_file(self, txn: lmdb.Transaction[bytes]) -> None:
        # Where a compaction was killed just behind its rename, who waited for it has lock.mdb open
        # with the number of the file that is gone.  A commit with that one would be lost, or take
        # the newest one along.
        if txn.id() != self.lmdb.info()["last_txnid"] + 1:
            raise Busy(
                f"{self.path}: a process has the vault open since it was compacted, with what LMDB "
                "noted of the file before. Nothing was changed and nothing is lost; end servers "
                "and other commands, then try again.",
                kind="stale-lock",
            )

    def _open_tables(self, txn: lmdb.Transaction[bytes] | None) -> None:
        # The format first: a newer one may have other tables.
        meta = self._open_table(tables.META, txn)
        with contextlib.nullcontext(txn) if txn else self.lmdb.begin() as reading:
            cursor = cast("lmdb.Cursor[memoryview]", reading.cursor(meta))
            found = rows.rows_of(cursor, tables.META).scan(b"", None, reverse=False)
            self.options: Options = fmt.from_meta({row.key: row.value for row in found})
        for name in (*tables.KEYED, *tables.NUMBERED):
            self.databases[name] = self._open_table(name, txn)

    def _open_table(self, name: str, txn: lmdb.Transaction[bytes] | None) -> Database:
        return self.lmdb.open_db(name.encode(), txn=txn, create=False, **tables.FLAGS.get(name, {}))

    def write_queue(self) -> WriteLock:
        """The writers' queue; ``Busy`` if a writer kept this environment from being writable."""
        if self.writers is None:
            raise Busy(
                f"{self.path}: another process was writing when this vault was opened, and did "
                "not finish, so it can only be read. Nothing was changed; see what that process "
                "does, then close the vault and open it again to write.",
                kind="write-locked",
            )
        return self.writers

    def acquire(self) -> None:
        """Become a user; ``IOFailed`` if the environment is closed, broken or a parent's."""
        with self._guard:
            if not self._users:
                raise IOFailed(self._unusable, kind="closed")
            self._users += 1

    def release(self) -> None:
        with self._guard:
            if self._users > 1:
                self._users -= 1
                return
        self._release_last()

    def _release_last(self) -> None:
        # The registry's lock first, so that nobody opens the vault while it is half closed.
        with _registry_lock, self._guard:
            if not self._users:
                return  # left behind by a fork: not ours to close
            self._users -= 1
            if self._users:
                return
            for key in [key for key, value in _registry.items() if value is self]:
                del _registry[key]
            self._shut()

    def _shut(self) -> None:
        environment: lmdb.Environment | None = getattr(self, "lmdb", None)
        if environment is not None:
            environment.close()
        if self.head is not None:
            self.head.close()
        self.residency.close()

    def check_process(self, txn: object) -> None:
        """Refuse to end in a forked child a transaction that is still its parent's."""
        if not self._users:
            _left_behind.append(txn)
            raise IOFailed(self._unusable, kind="closed")

    def abandon(self) -> None:
        """In a forked child: forget everything without closing what the parent still uses."""
        self._guard = threading.Lock()
        self.bloom = Bloom()
        self._users = 0
        self._unusable = _FORKED
        if self.head is not None:
            self.head.close()  # else a child that lives on would keep the parent's write lock


def open_environment(path: Path, wait: float) -> Environment:
    """The environment of the vault directory ``path``; the caller is a user and must release it.

    If it is not open yet, a writer in another process is waited for, ``wait`` seconds at most.

    Errors: ``NotFound`` no vault there, ``Damaged``, ``Unsupported``, ``NoSpace``, ``IOFailed``.
    """
    with _registry_lock:
        try:
            status = os.stat(path / DATA)
            key = (status.st_dev, status.st_ino)
            known = _registry.get(key)
            if known is not None:
                known.acquire()
                return known
            if key in _parents_files:
                raise IOFailed(_FORKED, kind="forked")
            environment = Environment(path, wait)
            status = os.stat(path / DATA)
            if (status.st_dev, status.st_ino) != key:
                # The file was compacted while this waited for the lock: this is the old one.
                environment._shut()
                return open_environment(path, wait)
            _registry[key] = environment
            return environment
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"there is no vault at {path}") from None
        except lmdb.Error as error:
            raise _opening_failed(error, path) from error
        except OSError as error:
            raise faults.from_os(error, path) from error


def refuse_open(data: Path) -> None:
    """``Busy`` if this process has the data file open."""
    status = os.stat(data)
    with _registry_lock:
        if (status.st_dev, status.st_ino) in _registry:
            raise Busy(f"{data.parent}: this process has the vault open; close it first")


def open_lmdb(path: Path, *, readonly: bool, lock: bool) -> lmdb.Environment:
    return lmdb.open(
        os.fsencode(path),  # a name in another encoding than UTF-8 it would not take as text
        map_size=pages.MAP_SIZE,
        create=False,
        readonly=readonly,
        mode=0o600,
        max_readers=filesystem.READERS,
        max_dbs=MAX_TABLES,
        max_spare_txns=1,
        lock=lock,
        lib_version=0,
    )


def oldest_reader(environment: lmdb.Environment) -> int | None:
    """The transaction id of the oldest read snapshot of any process, if there is one.

    LMDB tells it as a table for people: process, thread, transaction or ``-`` for an idle slot.
    """
    fields = [line.split() for line in environment.readers().splitlines()[1:]]
    return min((int(line[2]) for line in fields if len(line) == 3 and line[2] != "-"), default=None)


def _can_lock(path: Path) -> bool:
    """Whether a reader can take part in the locking; if not, nobody may be writing."""
    lock = path / LOCK
    if filesystem.may_write(lock if lock.exists() else path):
        return True
    if filesystem.nobody_writes(path / DATA):
        return False
    raise IOFailed(
        f"{path}: lock.mdb cannot be written, and somebody else might write to the vault while it "
        "is read. Ask for write permission on lock.mdb, or make data.mdb read-only for everybody.",
        kind="not-permitted",
    )


def _opening_failed(error: lmdb.Error, path: Path) -> VaultError:
    failed = faults.from_lmdb(error, path)
    if isinstance(error, lmdb.NotFoundError):
        return Damaged(f"{path}: this database is not a whole vault: a table is missing")
    return failed


def _after_fork() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()
    for environment in _registry.values():
        environment.abandon()
    # Kept for ever: collecting them would touch the parent's mapping and lock file.
    _left_behind.extend(_registry.values())
    _parents_files.update(_registry)
    _registry.clear()


os.register_at_fork(after_in_child=_after_fork)
