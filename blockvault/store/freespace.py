"""Pages that LMDB does not use any more, given back to the file system while the vault is in use.

LMDB keeps a list of free pages and takes new ones from it, but its file never shrinks: a large
import leaves as much behind as the index is long, since each commit writes the touched pages anew.
Here those pages become holes.  The list is a tree of its own: ``transaction id -> page numbers``,
the pages that this transaction freed.

A page may become a hole under exactly the rule by which LMDB may write over it: the transaction
that freed it is older than the newest commit and than the oldest reader.  Then neither of the two
meta pages nor any reader can reach it.  The caller holds the write lock, so no commit changes the
list meanwhile, and new readers only ever begin at the newest commit.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from blockvault.store import pages
from blockvault.store.pages import Meta

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_WORTH_BYTES = 4 << 20
_WORTH_SHARE = 100

_libc = ctypes.CDLL(None, use_errno=True)


def give_back(data_file: Path, oldest_reader: int | None) -> int:
    """Punch holes where free pages take space; return the bytes given back.

    ``oldest_reader`` is the transaction id of the oldest read snapshot, None if there is none.
    Nothing is done for less than 1 % of the file, nor on a file system that cannot do it.
    """
    with open(data_file, "r+b", buffering=0) as file:
        fd = file.fileno()
        newest = max(filter(None, (pages.read_meta(fd, number) for number in (0, 1))))
        limit = newest.txn_id if oldest_reader is None else min(newest.txn_id, oldest_reader)
        free = sorted(_free_pages(fd, newest, limit))
        taken = os.fstat(fd).st_blocks * 512
        spare = taken - (newest.size - len(free) * newest.page_size)
        if spare < max(_WORTH_BYTES, taken // _WORTH_SHARE):
            return 0
        for start, stop in _runs(free):
            if not _punch(fd, start * newest.page_size, (stop - start) * newest.page_size):
                break
        return taken - os.fstat(fd).st_blocks * 512


def _free_pages(fd: int, meta: Meta, limit: int) -> Iterator[int]:
    """Pages freed by transactions older than ``limit``."""
    for key, value in pages.rows(fd, meta, meta.roots[0]):
        if int.from_bytes(key, "little") < limit:
            count, *numbers = struct.unpack(f"<{len(value) // 8}Q", value)
            yield from numbers[:count]


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending page numbers as [start, stop) runs."""
    start = stop = -1
    for number in numbers:
        if number != stop:
            if start < stop:
                yield start, stop
            start = number
        stop = number + 1
    if start < stop:
        yield start, stop


def _punch(fd: int, offset: int, length: int) -> bool:
    """Make a range a hole; False where the file system cannot."""
    call = getattr(_libc, "fallocate", None)
    if call is None:
        return False
    arguments = (ctypes.c_int(fd), _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(offset))
    if call(*arguments, ctypes.c_long(length)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code))
