"""Pages that LMDB does not use any more, given back to the file system while the vault is in use.

LMDB keeps a list of free pages and takes new ones from it, but its file never shrinks: a large
import leaves as much behind as the index is long, since each commit writes the touched pages anew.
Here those pages become holes.  The list is a tree of its own: ``transaction id -> page numbers``,
the pages that this transaction freed.

A page may become a hole under exactly the rule by which LMDB may write over it: the transaction
that freed it is older than the newest commit and than the oldest reader.  Then neither of the two
meta pages nor any reader can reach it.  The caller holds the write lock, so no commit changes the
list meanwhile, and new readers only ever begin at the newest commit.

Writers wait while the lock is held, so it is let go as soon as somebody wants it: each
``slice_of`` looks at the list as it then is, goes on behind the page where the one before stopped,
and says where it is.  Pages that LMDB moved to an earlier row of its list in between are left for
the next time.

Several rows are taken together, for what two commits freed often lies side by side, and a hole
costs the file system the same 90 us whatever its length (measured, ext4).  ``least`` leaves short
ones to LMDB: half of all holes would be of a single page, for a fifth of the bytes.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from blockvault.libc import punch_hole
from blockvault.store import pages

SLICE = 0.002
"""Seconds after which writers who wait get their turn: they wait as long as for a commit."""

_WORTH_BYTES = 4 << 20
_WORTH_SHARE = 100
_PUNCH_BYTES = 1 << 20
_PAGES_TOGETHER = 1 << 13


class Reached(NamedTuple):
    """How far the list was gone through: the last page that is done of the rows from ``row`` on."""

    row: int
    page: int


BEGIN = Reached(0, -1)


def worth_it(taken: int, used: int) -> bool:
    """Whether a file takes so many more bytes of the disk than it uses."""
    return taken - used >= max(_WORTH_BYTES, taken // _WORTH_SHARE)


def slice_of(
    fd: int,
    after: Reached,
    until: int,
    oldest_reader: int | None,
    awaited: Callable[[], bool],
    least: int = 1,
) -> Reached | None:
    """Punch holes until somebody waits; return how far that came, None if all is done.

    Takes pages that were freed before transaction ``until``: a busy writer frees new ones for ever.
    ``oldest_reader`` is the transaction id of the oldest read snapshot, None if there is none.
    ``awaited``, whether somebody waits for the lock, is asked now and then.  ``least`` is how many
    free pages in a row are worth a hole.
    Nothing is done on a file system that knows no holes.
    """
    newest = max(filter(None, (pages.read_meta(fd, number) for number in (0, 1))))
    limit = min(newest.txn_id, until, newest.txn_id if oldest_reader is None else oldest_reader)
    size, look = newest.page_size, time.monotonic() + SLICE
    for first, following, numbers in _together(fd, newest, after.row, limit):
        behind = after.page if first == after.row else -1
        for start, stop in _runs([page for page in numbers if page > behind], least):
            if not punch_hole(fd, start * size, (stop - start) * size):
                return None
            now = time.monotonic()
            if now >= look:
                if awaited():
                    return Reached(first, stop - 1)
                look = now + SLICE
        after = Reached(following, -1)
    return None


def _together(
    fd: int, newest: pages.Meta, row: int, limit: int
) -> Iterator[tuple[int, int, list[int]]]:
    """The pages of some rows at a time, from ``row`` up to ``limit``: the number of the first row,
    that behind the last one, and the pages, ascending.
    """
    first, numbers = row, list[int]()
    for key, value in pages.numbered_rows(fd, newest, newest.roots[0], row):
        if key >= limit:
            break
        count, *some = struct.unpack(f"<{len(value) // 8}Q", value)
        numbers += some[:count]
        if len(numbers) >= _PAGES_TOGETHER:
            yield first, key + 1, sorted(numbers)
            first, numbers = key + 1, []
    yield first, limit, sorted(numbers)


def _runs(numbers: list[int], least: int) -> Iterator[tuple[int, int]]:
    """Ascending page numbers as [start, stop) runs, none shorter, none longer than one call may
    take.
    """
    start = stop = -1
    for number in numbers:
        if number != stop or stop - start >= _PUNCH_BYTES >> 12:
            if stop - start >= least:
                yield start, stop
            start = number
        stop = number + 1
    if stop - start >= least:
        yield start, stop
