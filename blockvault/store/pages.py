"""The database file as seen without the engine: what must be sound before LMDB may open it.

LMDB believes its file.  An empty one it initialises, a damaged meta page makes it refuse the file
although the other one is whole, and a file cut short kills the process with SIGBUS when the missing
part is read.  So the two meta pages are read here first, and if the file is shorter than they say,
the trees are walked to see whether anything in use is missing (unused pages at the end may be).

LMDB 0.9, 64-bit, little-endian; page size from the file.  A page begins with a header of 16 bytes:
its number u64, pad u16, flags u16, then u16 lower and upper bounds or u32 pages of an overflow run.
Pages 0 and 1 hold the metas, and the one with the greater transaction id counts.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blockvault.errors import Damaged, NotFound

MAP_SIZE = 16 << 40
"""One huge map for good: growing it later would kill every transaction of the process."""

MAGIC, VERSION = 0xBEEFC0DE, 1
NO_PAGE = (1 << 64) - 1
BRANCH, LEAF, META, DIRTY, LEAF2, SUBPAGE = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40
BIG, SUBTREE, DUPLICATES = 0x01, 0x02, 0x04

_PAGE = struct.Struct("<QHHHH")
_NODE = struct.Struct("<HHHH")
_TREE = struct.Struct("<IHHQQQQQ")
_META = struct.Struct(f"<IIQQ{_TREE.size}s{_TREE.size}sQQ")
_MAX_DEPTH = 32
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_TRIES = 3


class Node(NamedTuple):
    """A node: those of leaves have a value, as far as it lies in the page, of branches a child."""

    flags: int
    key: bytes
    value: bytes
    child: int


class Meta(NamedTuple):
    """One of the two meta pages: the commit ``txn_id`` and the roots of its trees."""

    txn_id: int
    page_size: int
    last_page: int
    roots: tuple[int, int]
    depth: int

    @property
    def size(self) -> int:
        """Bytes that the file has if its last pages are in use."""
        return (self.last_page + 1) * self.page_size


def inspect(path: Path) -> None:
    """``Damaged`` if LMDB must not open the data file at ``path``; ``NotFound`` if it is not there.

    A file that somebody is writing may be seen between two states: what looks damaged is looked at
    again before it is called so.
    """
    for attempt in range(_TRIES):
        try:
            with path.open("rb") as file:
                return _inspect(file.fileno(), path)
        except FileNotFoundError:
            raise NotFound(f"there is no vault at {path.parent}") from None
        except Damaged:
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.001)


def _inspect(file: int, path: Path) -> None:
    metas = [_meta(file, number) for number in (0, 1)]
    newest = max(filter(None, metas), default=None)
    # Only the one that counts must make sense: when a meta write fails, LMDB puts the old number
    # back into the page, but leaves the new roots there.
    if None in metas or newest is None or not _makes_sense(newest):
        raise _damaged_meta(path, [read_meta(file, number) for number in (0, 1)])
    size = os.fstat(file).st_size
    for root in newest.roots:
        if root != NO_PAGE and not _is_tree_page(file, newest, root):
            raise Damaged(
                f"{path}: the newest commit points at a page that is none of its own. "
                f"{_COPY_FIRST}",
                kind="damaged-meta",
            )
    if size < newest.size and any(end > size for end in used(file, newest)):
        raise Damaged(
            f"{path} is cut short: {size:,} bytes of {newest.size:,} are there. {_COPY_FIRST}",
            kind="truncated",
        )


def read_meta(file: int, number: int) -> Meta | None:
    """Meta page 0 or 1 of an open data file; None if it is not a sound one."""
    meta = _meta(file, number)
    return meta if meta and _makes_sense(meta) else None


def _meta(file: int, number: int) -> Meta | None:
    """A meta page as it stands; None if it is none of this database."""
    page_size = _page_size(file)
    page = os.pread(file, _PAGE.size + _META.size, number * page_size)
    if len(page) < _PAGE.size + _META.size or not _PAGE.unpack_from(page)[2] & META:
        return None
    magic, version, _, _, free, main, last_page, txn_id = _META.unpack_from(page, _PAGE.size)
    trees = [_TREE.unpack(tree) for tree in (free, main)]
    # The first tree's pad field is where LMDB keeps the page size.
    if (magic, version, trees[0][0]) != (MAGIC, VERSION, page_size):
        return None
    depth = max(trees[0][2], trees[1][2])
    return Meta(txn_id, page_size, last_page, (trees[0][-1], trees[1][-1]), depth)


def _makes_sense(meta: Meta) -> bool:
    return (
        meta.depth <= _MAX_DEPTH
        and all(root == NO_PAGE or 2 <= root <= meta.last_page for root in meta.roots)
        and meta.size <= MAP_SIZE
    )


def _page_size(file: int) -> int:
    # Where the second meta page is found, rather than what a damaged one says of itself.
    magic = MAGIC.to_bytes(4, "little")
    for size in _PAGE_SIZES:
        if os.pread(file, 4, size + _PAGE.size) == magic:
            return size
    return os.sysconf("SC_PAGE_SIZE")


def _is_tree_page(file: int, meta: Meta, number: int) -> bool:
    page = os.pread(file, _PAGE.size, number * meta.page_size)
    if len(page) < _PAGE.size:
        return True  # cut short: found out, and said, by the walk
    own_number, _, flags, _, _ = _PAGE.unpack(page)
    return own_number == number and bool(flags & (BRANCH | LEAF))


def used(file: int, meta: Meta) -> Iterator[int]:
    """The ends, in bytes, of everything that the trees of ``meta`` reach."""
    waiting = [root for root in meta.roots if root != NO_PAGE]
    seen = set(waiting)
    while waiting:
        number = waiting.pop()
        yield (number + 1) * meta.page_size
        if number > meta.last_page:
            continue
        page = os.pread(file, meta.page_size, number * meta.page_size)
        for child, big in _children(page):
            if big is not None:
                pages = (_PAGE.size - 1 + big) // meta.page_size + 1
                yield (child + pages) * meta.page_size
            elif child not in seen:  # a damaged tree may have cycles
                seen.add(child)
                waiting.append(child)


def numbered_rows(file: int, meta: Meta, root: int, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(key, value) from ``start`` on of a tree with integer keys, read from the file itself."""
    waiting = [] if root == NO_PAGE else [root]
    while waiting:
        page = os.pread(file, meta.page_size, waiting.pop() * meta.page_size)
        if _PAGE.unpack_from(page)[2] & LEAF:
            yield from _leaf_rows(file, meta, page, start)
        else:
            children = list(_branches(page))
            ends = [key for key, _ in children[1:]]
            later = [child for end, (_, child) in zip(ends, children, strict=False) if end > start]
            waiting += [*reversed(later + [child for _, child in children[-1:]])]


def _branches(page: bytes) -> Iterator[tuple[int, int]]:
    """(smallest key, page number) of the children of a branch page; the first has no key."""
    for at in _node_offsets(page):
        low, high, higher, key_size = _NODE.unpack_from(page, at)
        key = int.from_bytes(page[at + _NODE.size :][:key_size], "little")
        yield key, low | high << 16 | higher << 32


def _leaf_rows(file: int, meta: Meta, page: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    for at in _node_offsets(page):
        low, high, flags, key_size = _NODE.unpack_from(page, at)
        key = int.from_bytes(page[at + _NODE.size :][:key_size], "little")
        data, size = at + _NODE.size + key_size, low | high << 16
        if key < start:
            continue
        if flags & BIG:
            first = int.from_bytes(page[data : data + 8], "little")
            yield key, os.pread(file, size, first * meta.page_size + _PAGE.size)
        else:
            yield key, page[data : data + size]


def _node_offsets(page: bytes) -> Iterator[int]:
    _, _, _, lower, _ = _PAGE.unpack_from(page)
    for index in range(_PAGE.size, min(lower, len(page) - 1), 2):
        yield int.from_bytes(page[index : index + 2], "little")


def _children(page: bytes) -> Iterator[tuple[int, int | None]]:
    """What a page points at: (page number, None), or (first page, bytes) of a large value."""
    if len(page) < _PAGE.size:
        return
    _, _, flags, lower, _ = _PAGE.unpack_from(page)
    if flags & LEAF2:
        return  # an array of duplicates, without nodes
    for index in range(_PAGE.size, min(lower, len(page) - 1), 2):
        at = int.from_bytes(page[index : index + 2], "little")
        if at + _NODE.size > len(page):
            continue
        low, high, node_flags, key_size = _NODE.unpack_from(page, at)
        data = at + _NODE.size + key_size
        if flags & BRANCH:
            yield low | high << 16 | node_flags << 32, None
        elif node_flags & BIG and data + 8 <= len(page):
            yield int.from_bytes(page[data : data + 8], "little"), low | high << 16
        elif node_flags & SUBTREE and data + _TREE.size <= len(page):
            root = _TREE.unpack_from(page, data)[-1]
            if root != NO_PAGE:
                yield root, None


def header_of(page: bytes) -> tuple[int, int, int, int] | None:
    """(pad, flags, lower, upper) of a page or sub-page; None if it is too short."""
    return _PAGE.unpack_from(page)[1:] if len(page) >= _PAGE.size else None


def tree_root(record: bytes) -> int:
    """The root page of a tree, from its record in the main tree; ``NO_PAGE`` if that is short."""
    return int(_TREE.unpack_from(record)[-1]) if len(record) >= _TREE.size else NO_PAGE


def nodes(page: bytes) -> Iterator[Node]:
    """The nodes of a branch or leaf."""
    for at in _node_offsets(page):
        if at + _NODE.size <= len(page):
            low, high, flags, key_size = _NODE.unpack_from(page, at)
            data = at + _NODE.size + key_size
            value = page[data : data + (low | high << 16)]
            child = low | high << 16 | flags << 32
            yield Node(flags, page[data - key_size : data], value, child)


_COPY_FIRST = "Copy the vault directory before anything else; do not write to it."


def _damaged_meta(path: Path, metas: list[Meta | None]) -> Damaged:
    """Says which meta page is damaged, and the step that was seen to help."""
    whole = [number for number, meta in enumerate(metas) if meta]
    if not whole:
        return Damaged(
            f"{path} is not a vault's database, or both of its meta pages are damaged. "
            "Restore the vault from a copy.",
            kind="damaged-meta",
        )
    good, bad = whole[0], 1 - whole[0]
    return Damaged(
        f"{path}: meta page {bad} is damaged, meta page {good} is whole, so the data is most "
        f"likely safe. {_COPY_FIRST} Then 'blockvault repair' writes the damaged page anew.",
        kind="damaged-meta",
    )
