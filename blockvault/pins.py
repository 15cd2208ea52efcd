"""Who still needs what a collection might take: guards for a moment, pins for as long as needed.

Nothing here is judged by a clock: every claim is a ``flock``, which the kernel ends with its
process.  All files are in the vault's folder ``pins``.

*Guard.*  Whoever looks up objects or a state and then writes an event that names them holds a
guard from the first look to the commit: a shared lock on the file of the present *epoch*, a number
in ``meta``.  A collection condemns what it found dead, begins the next epoch, and takes nothing
before every guard of the earlier ones is gone; what those wrote meanwhile it has then read in the
log.  Guards of the new epoch find the condemned objects unknown and store them anew.  Where such a
file cannot be made or is somebody else's, the folder is locked instead: collections wait for that
in any epoch.  Only who may not write the vault has no guard, since no event can follow; and who
only reads goes on without one that cannot be had.  A forked child has no part in the guards of its
parent: it neither keeps nor ends them.

*Pin.*  Who reads one state for long holds a pin on its trees instead, so that a collection need not
wait: a locked file that lists them.  A pin is made under a guard that saw the state in the tables.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blockvault import files
from blockvault.encoding import pack, unpack
from blockvault.errors import Busy, Damaged
from blockvault.store import faults, filesystem, shared, tables

if TYPE_CHECKING:
    from blockvault.store.types import Reader, Store, Writer

_DIRECTORY = "pins"
_EPOCH = b"epoch"
_NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}

_all: weakref.WeakSet[Guards] = weakref.WeakSet()


def epoch(reader: Reader) -> int:
    """The present epoch of collections."""
    data = reader.get(tables.META, _EPOCH)
    return 0 if data is None else int(unpack(data, "epoch"))


def next_epoch(writer: Writer) -> int:
    """Begin another epoch; return the one that ends."""
    ended = epoch(writer)
    writer.put(tables.META, _EPOCH, pack(ended + 1))
    return ended


class Guards:
    """The guards of one open vault: one locked file for all that are held in the same epoch."""

    def __init__(self, store: Store, vault: Path) -> None:
        self._store = store
        self._vault = vault
        self._directory = vault / _DIRECTORY
        self._mutex = threading.Lock()
        self._held: dict[int, tuple[int, int]] = {}
        self._spare: tuple[int, int] | None = None
        _all.add(self)

    def close(self) -> None:
        """Close the file that is kept open between two guards."""
        with self._mutex:
            self._drop_spare()

    def disown(self) -> None:
        """In a forked child: all guards are the parent's."""
        spare = [self._spare[1]] if self._spare else []
        descriptors = [fd for fd, _ in self._held.values()] + spare
        self._mutex, self._held, self._spare = threading.Lock(), {}, None
        for fd in descriptors:
            if fd >= 0:
                os.close(fd)

    @property
    def held(self) -> bool:
        """Whether anybody holds a guard through this vault."""
        return bool(self._held)

    @contextmanager
    def guard(self, *, reading: bool = False) -> Iterator[None]:
        """Nothing that is looked up inside of the block is collected before its end.

        ``IOFailed`` where a guard cannot be had; for ``reading`` it then is done without.
        """
        at = self._enter(reading)
        try:
            yield
        finally:
            self._leave(at)

    def _enter(self, reading: bool) -> int:
        with self._mutex:
            while True:
                at = self._spare[0] if self._spare else self._epoch()
                fd, count = self._held.get(at, (-1, 0))
                if not count or (fd < 0 and not reading):
                    fd = self._lock(at, reading)
                    # A collection may have begun the next epoch before it could see our lock.
                    if self._epoch() != at:
                        _close(fd)
                        continue
                self._held[at] = fd, count + 1
                return at

    def _leave(self, at: int) -> None:
        with self._mutex:
            if at not in self._held:
                return  # this is a child, forked inside of the block
            fd, count = self._held.pop(at)
            if count > 1:
                self._held[at] = fd, count - 1
                return
            # A commit takes a guard each: the file stays open for the next, a third of its cost.
            self._drop_spare()
            if fd >= 0:
                fcntl.flock(fd, fcntl.LOCK_UN)
                self._spare = at, fd

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            _close(spare[1])

    def _epoch(self) -> int:
        with self._store.read() as reader:
            return epoch(reader)

    def _lock(self, at: int, reading: bool) -> int:
        """Lock the file of epoch ``at``: the spare one, which then is one no more, or a new one."""
        if self._spare is not None:
            fd, self._spare = self._spare[1], None
            fcntl.flock(fd, fcntl.LOCK_SH)
            return fd
        fd = self._open(self._directory / f"epoch.{at}", reading)
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_SH)
        return fd

    def _open(self, path: Path, reading: bool) -> int:
        try:
            files.folder(self._directory)
            return files.opened(path)
        except OSError as error:
            if _only_reads(error, self._vault):
                return -1
            with contextlib.suppress(OSError):
                return os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
            if reading:
                return -1
            raise faults.from_os(error, path) from error


def drained(vault: Path, ended: int) -> bool:
    """Whether no guard of the epoch ``ended`` or an earlier one is held; forgets their files."""
    directory = vault / _DIRECTORY
    with _unused(directory) as free:
        if not free:
            return False
    for path in _files(directory, "epoch."):
        number = path.name.partition(".")[2]
        if number.isdigit() and int(number) <= ended:
            with _unused(path) as free:
                if not free:
                    return False
                path.unlink(missing_ok=True)
    return True


class Pinned(NamedTuple):
    """What a pin keeps: trees as (root, height), and single objects."""

    trees: tuple[tuple[bytes, int], ...]
    objects: tuple[bytes, ...]


class Pin:
    """Keeps trees and objects from being collected until ``release``, or until it is forgotten.

    ``IOFailed`` if the disk does not take it.  Who may write nothing shares the vault with no
    collection: there it keeps nothing.
    """

    def __init__(
        self, vault: Path, trees: Iterable[tuple[bytes, int]], objects: Sequence[bytes] = ()
    ) -> None:
        fd, path = _locked_file(vault, trees, objects)
        self._release = weakref.finalize(self, _forget, fd, path, os.getpid())

    def release(self) -> None:
        self._release()


def pinned(vault: Path) -> Iterator[tuple[str, Pinned]]:
    """(name, what it keeps) of every pin whose holder lives; removes those of the dead."""
    for path in _files(vault / _DIRECTORY, "pin."):
        with _unused(path) as free:
            if free:
                path.unlink(missing_ok=True)
                continue
        with contextlib.suppress(FileNotFoundError):
            try:
                trees, objects = unpack(path.read_bytes(), "pin")
            except (TypeError, ValueError):
                raise Damaged(f"{path} is not a pin", kind="bad-encoding") from None
            yield path.name, Pinned(trees, objects)
    for path in _files(vault / _DIRECTORY, "new."):
        with _unused(path) as free:
            if free:
                path.unlink(missing_ok=True)


@contextmanager
def sole(vault: Path, what: str) -> Iterator[None]:
    """Only one process does this, or what excludes it, at a time; ``Busy`` if another one does."""
    files.folder(vault / _DIRECTORY)
    fd = files.opened(vault / _DIRECTORY / what)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # a full disk is when a collection is needed most
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()}\n".encode(), 0)
        yield
    except BlockingIOError:
        holder = os.pread(fd, 100, 0).decode(errors="replace").strip() or "another process"
        raise Busy(
            f"{holder} is doing {what}, or what cannot be done beside it; nothing was changed"
        ) from None
    finally:
        filesystem.close_locked(fd)


def _locked_file(
    vault: Path, trees: Iterable[tuple[bytes, int]], objects: Sequence[bytes]
) -> tuple[int, Path]:
    """Make a pin, which gets its name when it is complete and locked: nobody sees it half done."""
    directory = vault / _DIRECTORY
    data = pack([[list(tree) for tree in trees], list(objects)])
    try:
        files.folder(directory)
        while True:
            name = os.urandom(8).hex()
            new, path = directory / f"new.{name}", directory / f"pin.{name}"
            fd = files.opened(new)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                with open(fd, "wb", closefd=False) as file:
                    file.write(data)
                os.rename(new, path)
                return fd, path
            except FileNotFoundError:
                # In the moment before it was locked, a collection took it for a dead one's.
                os.close(fd)
            except BaseException:
                _forget(fd, new, os.getpid())
                raise
    except OSError as error:
        if _only_reads(error, vault):
            return -1, directory
        raise faults.from_os(error, directory) from error


def _only_reads(error: OSError, vault: Path) -> bool:
    """Whether a claim was refused to somebody who may write nothing of the vault."""
    return error.errno in _NOT_ALLOWED and not filesystem.may_write(vault / shared.DATA)


def _forget(fd: int, path: Path, owner: int) -> None:
    if fd >= 0:
        if os.getpid() == owner:  # and no child that was forked
            path.unlink(missing_ok=True)
        os.close(fd)


def _files(directory: Path, prefix: str) -> list[Path]:
    return sorted(directory.glob(prefix + "*"))


@contextmanager
def _unused(path: Path) -> Iterator[bool]:
    """Whether nobody has locked the file or directory, which then is locked for the block."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    else:
        yield True
    finally:
        _close(fd)


def _close(fd: int) -> None:
    if fd >= 0:
        filesystem.close_locked(fd)


def _after_fork() -> None:
    for guards in tuple(_all):
        guards.disown()


os.register_at_fork(after_in_child=_after_fork)
