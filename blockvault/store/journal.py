"""The journal of one branch: what a flush made durable before the tables have it.

A commit of the database takes two syncs in turn and changes the file's extents; a flush that a
guest waits for needs one write to blocks that are already there, which is durable when it returns.
So a session whose guest flushes often appends to this file first and commits behind.  The file has
a page of header and two halves, written in turn; a half is used again when the tables have all that
it says::

    header   magic "bvjrnl 1" ‖ 16 random bytes, the journal's name ‖ u32 LE bytes of a half
    record   magic "bvjr" ‖ u32 LE length of payload ‖ BLAKE3(name ‖ payload)[:24] ‖ payload

The header fills a page of 4,096 bytes, and each record begins at one, so that a write which is
torn never touches a record that was promised before.  The payload is ``pack([first, stop,
entries...])``: entries are numbered from the session's first on, these are ``first`` to
``stop - 1``.  What the entries say is the session's business.

A record that is not whole may be the last one, torn, or one that was damaged since: then others
follow it, and what it said is missing before them.  So all pages are looked at, not only those up
to there.  Records of an earlier use of a half say what the tables have.

The file is filled with zeros when it is made: making blocks durable that the file system has only
promised writes its own journal too, and takes twice as long.  A disk that has not several times as
much free gets none: commits need the room.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from blockvault import files
from blockvault.encoding import pack, unpack
from blockvault.errors import Damaged, NoSpace, VaultError
from blockvault.store import faults, filesystem

HALF = 16 << 20
"""About what a client that writes at full speed flushes while a checkpoint holds the tables."""
RECORD_BYTES = 2 << 20
"""The longest record, for which memory is kept."""
PAGE = 4096
NAME_SIZE = 16

_DIRECTORY = "journals"
_MAGIC = b"bvjrnl 1"
_HEADER = struct.Struct("<8s16sI")
_RECORD_MAGIC = b"bvjr"
_RECORD = struct.Struct("<4sI24s")


class Entries(NamedTuple):
    """One record: the entries ``first`` to ``stop - 1``, as they were packed."""

    first: int
    stop: int
    rows: tuple[Any, ...]


class Journal:
    """An open journal, for one session at a time; appending is the caller's to serialize."""

    def __init__(self, path: Path, descriptor: int, name: bytes, half: int) -> None:
        """Use ``create`` or ``find``."""
        self.path = path
        self.name = name
        self._descriptor = descriptor
        self._synced = -1
        self._record = mmap.mmap(-1, RECORD_BYTES)
        """Memory that begins at a page, as it has to for a write past the page cache."""
        self._half = half
        self._current = 0
        self._at = 0
        self._stops = [0, 0]
        """Of each half the number behind its last entry."""

    @classmethod
    def create(cls, vault: Path, branch: int, half: int | None = None) -> Journal:
        """Make the journal of a branch; ``NoSpace`` or ``IOFailed`` leave none."""
        half = half or HALF
        path = path_of(vault, branch)
        try:
            if PAGE + 2 * half > filesystem.to_spare(vault):
                raise NoSpace(
                    f"{path}: the disk has too little free for a journal; flushes go to the tables"
                )
            files.folder(path.parent)
            descriptor = files.opened(path)
        except OSError as error:
            raise faults.from_os(error, path) from error
        try:
            os.ftruncate(descriptor, 0)
            name = os.urandom(NAME_SIZE)
            blank = bytes(1 << 20)
            for at in range(0, PAGE + 2 * half, len(blank)):
                _write(descriptor, blank[: PAGE + 2 * half - at], at)
            os.fsync(descriptor)
            _write(descriptor, _HEADER.pack(_MAGIC, name, half), 0)
            os.fsync(descriptor)
            filesystem.sync_path(path.parent)
            filesystem.sync_path(vault)
        except BaseException as error:
            os.close(descriptor)
            with contextlib.suppress(VaultError):
                _unlink(path)
            if isinstance(error, OSError):
                raise faults.from_os(error, path) from error
            raise
        return cls(path, descriptor, name, half)

    @classmethod
    def find(cls, vault: Path, branch: int) -> Journal | None:
        """The journal that a session left which did not end in order, if there is one."""
        path = path_of(vault, branch)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise faults.from_os(error, path) from error
        try:
            head = os.pread(descriptor, PAGE, 0)
            if any(head):
                magic, name, half = _HEADER.unpack_from(head.ljust(_HEADER.size, b"\0"))
                if magic != _MAGIC or os.fstat(descriptor).st_size != PAGE + 2 * half:
                    raise _damaged(path, "its header is not one")
                return cls(path, descriptor, name, half)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise faults.from_os(error, path) from error
            raise
        # Whoever was making it had promised nothing yet.
        os.close(descriptor)
        _unlink(path)
        return None

    def append(self, first: int, stop: int, rows: Sequence[Any], stored: int) -> bool:
        """Append entries durably; False if there is no room before the tables have more.

        ``stored`` is the number behind the last entry that the tables have.  ``IOFailed`` if the
        disk refuses; then nobody knows whether the record is there, and the journal is done for.
        """
        payload = pack([first, stop, *rows])
        end = _RECORD.size + len(payload)
        pages = -(-end // PAGE) * PAGE
        if pages > RECORD_BYTES:
            return False
        if self._at + pages > self._half:
            if pages > self._half or self._stops[1 - self._current] > stored:
                return False
            self._current, self._at = 1 - self._current, 0
        record = self._record
        _RECORD.pack_into(record, 0, _RECORD_MAGIC, len(payload), self._check(payload))
        record[_RECORD.size : end] = payload
        record[end:pages] = bytes(pages - end)
        try:
            if self._synced < 0:
                self._synced = filesystem.open_synced(self.path)
            with memoryview(record) as view:
                _write(self._synced, view[:pages], PAGE + self._current * self._half + self._at)
        except OSError as error:
            raise faults.from_os(error, self.path) from error
        self._at += pages
        self._stops[self._current] = stop
        return True

    def entries(self, stored: int | None) -> list[Entries]:
        """The records that say more than the tables, which have the entries before ``stored``.

        None if the tables know nothing of this journal: then all of them.  ``Damaged`` if one is
        missing between them: what was promised cannot be kept.
        """
        there = {**self._records(0), **self._records(1)}
        records = sorted(there.values(), key=lambda each: each[:2])
        if stored is None:
            # No half was used twice, so the first record of all is still at the beginning.
            if records and 0 not in there:
                raise _damaged(self.path, "its first record is missing")
            stored = records[0].first if records else 0
        found, expected = [], stored
        for record in records:
            if record.stop < stored or (record.stop == stored and record.first < stored):
                continue
            if record.first > expected:
                raise _damaged(self.path, f"entry {expected} is missing")
            expected = record.stop
            found.append(record)
        return found

    def _records(self, half: int) -> dict[int, Entries]:
        """The whole records of a half, by their places in the file behind its header."""
        try:
            data = os.pread(self._descriptor, self._half, PAGE + half * self._half)
        except OSError as error:
            raise faults.from_os(error, self.path) from error
        found, at = {}, 0
        while at + _RECORD.size <= len(data):
            payload = self._payload(data, at)
            if payload is None:
                at += PAGE
                continue
            first, stop, *rows = unpack(payload, "a record of the journal")
            found[half * self._half + at] = Entries(first, stop, tuple(rows))
            at += -(-(_RECORD.size + len(payload)) // PAGE) * PAGE
        return found

    def _payload(self, data: bytes, at: int) -> bytes | None:
        """What the record there says; None if none begins there, or not all of it is there."""
        magic, length, check = _RECORD.unpack_from(data, at)
        # A guest's data may look so on each page of a torn record, and be hashed from each on.
        if magic != _RECORD_MAGIC or length > RECORD_BYTES - _RECORD.size:
            return None
        payload = data[at + _RECORD.size : at + _RECORD.size + length]
        return payload if len(payload) == length and check == self._check(payload) else None

    def _check(self, payload: bytes) -> bytes:
        return blake3(self.name + payload).digest(24)

    def close(self) -> None:
        """Let go of the file, and leave it to whoever opens the branch next."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        if self._synced >= 0:
            with contextlib.suppress(OSError):
                os.close(self._synced)

    def remove(self) -> None:
        """The tables have everything: the journal is needed no more.  ``IOFailed`` if it stays."""
        _unlink(self.path)
        self.close()


def path_of(vault: Path, branch: int) -> Path:
    return vault / _DIRECTORY / str(branch)


def left_behind(vault: Path) -> list[int]:
    """The branches that have a journal: in use, or left by a session that was killed."""
    directory = vault / _DIRECTORY
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(int(name) for name in os.listdir(directory) if name.isdecimal())
    return []


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise faults.from_os(error, path) from error


def _write(descriptor: int, data: bytes | memoryview, at: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, at)
        data, at = data[done:], at + done


def _damaged(path: Path, why: str) -> Damaged:
    return Damaged(
        f"{path} is damaged: {why}. It holds what guests flushed just before their server died. "
        "Copy the vault directory before anything else; to go on without those writes, move this "
        "file away.",
        kind="journal-damaged",
    )
