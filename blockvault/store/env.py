"""The LMDB store: a vault directory, opened with care (``creating`` makes one).

Opening: network file systems and newer formats are refused, stale reader slots cleared, the lock
file's blocks allocated, and the end of the log compared with the head file.  Whether the file may
be written decides how LMDB opens it; ``readonly`` only makes this store refuse to write.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import lmdb

from blockvault.errors import Damaged, IOFailed, VaultError
from blockvault.store import (
    creating,
    eventlog,
    faults,
    filesystem,
    freespace,
    shared,
    subpages,
    tables,
    writelock,
)
from blockvault.store import format as fmt
from blockvault.store.headfile import Slot
from blockvault.store.index import ENTRY_SIZE
from blockvault.store.readtxn import LmdbReader
from blockvault.store.types import Options, Writer
from blockvault.store.writetxn import LmdbWriter

OPEN_WAIT = 5.0
"""Seconds that opening waits for a writer of another process; then it opens for reading only."""

_INDEX_PAGES = re.compile(
    r"main/index DB: walked (\d+) (?:branch|leaf) pages(?: \((\d+) with dup sub-trees\))?, "
    r"record says (\d+)"
)
_TRIES = 3
_REST = 0.004
"""Seconds between two slices of punching: those who wait for the lock ask for it again in that."""

Populate = Callable[[Writer], None]


class LmdbStore:
    """A vault directory, open.  See ``types.Store``; usable from any thread."""

    def __init__(
        self, environment: shared.Environment, *, readonly: bool, write_timeout: float
    ) -> None:
        """Use ``create`` or ``open``."""
        self._env = environment
        self._open = True
        self._write_timeout = write_timeout
        self.path = environment.path
        self.options = environment.options
        self.readonly = readonly

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], options: Options, populate: Populate | None = None
    ) -> LmdbStore:
        """Make a new vault directory at ``path``; its parent must exist.

        ``populate`` may write to the store before anybody can see it: the vault appears with what
        it wrote, or not at all.  ``Conflict`` if something is there already.
        """
        path = Path(os.path.abspath(path))
        fmt.check_options(options)
        try:
            filesystem.refuse_network(path.parent)
            with creating.in_place(path) as building:
                creating.make_tables(building, options)
                with cls.open(building) as store, store.write() as writer:
                    if populate is not None:
                        populate(writer)
        except lmdb.Error as error:
            raise faults.from_lmdb(error, path.parent) from error
        except OSError as error:
            raise faults.from_os(error, path.parent) from error
        return cls.open(path)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        readonly: bool | None = False,
        write_timeout: float = writelock.TIMEOUT,
    ) -> LmdbStore:
        """Open the vault directory at ``path``; ``readonly`` None: to write if that is possible.

        Errors: ``NotFound``, ``Unsupported`` (newer format, unknown feature, network file system),
        ``Damaged``, ``NoSpace`` (no room for the lock file), ``IOFailed``.
        """
        path = Path(os.path.abspath(path))
        filesystem.refuse_network(path)
        environment = shared.open_environment(path, 0 if readonly else OPEN_WAIT)
        if readonly is None:
            readonly = not environment.writable
        store = cls(environment, readonly=readonly, write_timeout=write_timeout)
        try:
            if not readonly and not environment.writable:
                raise _not_writable(path)
            store._check_head()
        except BaseException:
            store.close()
            raise
        return store

    def read(self) -> LmdbReader:
        """The newest commit, as a context manager.  Keep it short."""
        self._check_open()
        return LmdbReader(self._env)

    def write(self) -> LmdbWriter:
        """The write transaction, as a context manager: one at a time, whoever writes."""
        self.check_writable()
        return LmdbWriter(self._env, self._write_timeout)

    def check_writable(self) -> None:
        """``IOFailed`` if this store is read-only, ``Busy`` if a writer made it so at opening."""
        self._check_open()
        if self.readonly:
            raise _not_writable(self.path)
        self._env.write_queue()

    def give_back(self, least: int = 1) -> int:
        """Turn pages that nobody uses into holes; return the bytes that the disk has back.

        ``least`` is how many of them in a row are worth it.
        Takes the write lock again and again for some milliseconds; nothing is done for less than
        1 % of the file.
        """
        with self.read() as reader:
            used, until = sum(reader.table_bytes().values()), reader.txn_id
        try:
            with open(self.path / shared.DATA, "r+b", buffering=0) as file:
                return self._punch(file.fileno(), used, until, least)
        except OSError as error:
            raise faults.from_os(error, self.path) from error

    def _punch(self, fd: int, used: int, until: int, least: int) -> int:
        before = os.fstat(fd).st_blocks * 512
        at = freespace.BEGIN if freespace.worth_it(before, used) else None
        while at is not None:
            with self.write() as writer:
                oldest = shared.oldest_reader(self._env.lmdb)
                at = freespace.slice_of(fd, at, until, oldest, lambda: writer.awaited, least)
            time.sleep(_REST)
        return max(0, before - os.fstat(fd).st_blocks * 512)

    def structure(self) -> list[str]:
        """What is wrong with the database's pages; empty if nothing is.

        The file is walked without the engine.  A commit that comes in between makes the walk see
        two states, so a complaint counts only if nobody wrote meanwhile, if need be under the lock.
        """
        path = os.fspath(self.path / shared.DATA)
        for _ in range(_TRIES):
            before = self._env.lmdb.info()["last_txnid"]
            found = _walked(path)
            if not found or self._env.lmdb.info()["last_txnid"] == before:
                return found
        with self.write():
            return _walked(path)

    def close(self) -> None:
        if self._open:
            if not self.readonly:
                self._keep_filter()
            self._open = False
            self._env.release()

    def _keep_filter(self) -> None:
        """Leave the Bloom filter to the next process; nobody waits for that, or hears of it."""
        with contextlib.suppress(VaultError, OSError):
            with self.read() as reader:
                if not self._env.bloom.worth_keeping(reader):
                    return
            with LmdbWriter(self._env, 0) as writer:
                self._env.bloom.keep(writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise IOFailed("the vault has been closed", kind="closed")

    def _check_head(self) -> None:
        # The head first: it is written after its commit, so the snapshot must contain that commit.
        slot = None if self._env.head is None else self._env.head.newest()
        if slot is None:
            return
        with self.read() as reader:
            found = reader._log_at(slot.seq)
            if slot.seq == 0:
                known = slot.chain == eventlog.genesis(self.options.vault_id)
            else:
                known = found is not None and _ends_there(found, slot)
            if not known or reader.txn_id < slot.txn_id:
                raise _rolled_back(self.path, slot.seq, reader.last().seq)


def _ends_there(found: tuple[int, bytes | memoryview], slot: Slot) -> bool:
    """Whether a record ends where the head file says, or stands for pruned ones that did.

    The head file is not synced: after a power cut it may name a record that a prune has replaced.
    """
    end = eventlog.peek(*found)
    return end[::2] == (slot.seq, slot.chain) or (eventlog.is_gap(found) and slot.seq < end.seq)


def _walked(path: str) -> list[str]:
    """What py-lmdb's own walker, which has no types, says of a data file, and ours of the index."""
    from lmdb import verify as lmdb_verify

    try:
        found = [str(problem) for problem in lmdb_verify.verify(path)]  # type: ignore[no-untyped-call]
    except lmdb_verify.VerifyError as error:  # it could not even begin
        return [str(error)]
    found = [problem for problem in found if not _counts_pages_that_went(problem)]
    return found + subpages.damaged(Path(path), tables.INDEX, ENTRY_SIZE - 1)


def _counts_pages_that_went(problem: str) -> bool:
    """Whether it is only that LMDB counts more pages of the index than there are.

    It may, once all rows of a first byte have gone (see ``index``); nothing depends on the number.
    """
    match = _INDEX_PAGES.fullmatch(problem)
    return match is not None and int(match[2] or match[1]) < int(match[3])


def _rolled_back(path: Path, expected: int, found: int) -> Damaged:
    return Damaged(
        f"{path}: the database ends at event {found}, but event {expected} was committed: it has "
        "silently gone back to an older state. Copy the vault directory before anything else. If "
        f"you restored an older data.mdb on purpose, delete {path / shared.HEAD} to accept it.",
        kind="rolled-back",
    )


def _not_writable(path: Path) -> IOFailed:
    return IOFailed(
        f"{path}: this vault is read-only: it was opened so, its file system is, or its files are "
        "not yours to write; it can be read, and nothing was changed",
        kind="not-permitted",
    )
