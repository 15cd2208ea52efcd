"""What every byte of an LMDB file is for, read without the engine.

A random bit flip may hit a page that nothing refers to, or the gap in the middle of a page.  To say
"this flip was harmless" one has to prove it, so ``PageMap`` walks the trees from the newest meta
page and notes for each byte that it passes which part of the format it is.  What is left over is
free.  The walk trusts the file: it is meant for the sound file, before a bit of it is flipped.

The format is that of LMDB 0.9 on 64-bit little-endian machines, as ``mdb.c`` defines it.
"""

from __future__ import annotations

import bisect
import struct
from typing import NamedTuple

META_SIZE = 152  # the page header and MDB_meta: all that is used of pages 0 and 1
_HEADER = struct.Struct("<QHHHH")  # page number, pad, flags, lower, upper
_META = struct.Struct("<IIQQ48s48sQQ")  # magic, version, address, map size, two trees, last, txn
_TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branch, leaf, overflow, entries, root
_NODE = struct.Struct("<HHHH")  # low, high, flags, key size
_MAGIC, _NO_PAGE = 0xBEEFC0DE, (1 << 64) - 1
_BRANCH, _LEAF, _OVERFLOW, _FIXED = 1, 2, 4, 0x20
_BIG, _SUBTREE, _DUPLICATES = 1, 2, 4

IN_USE = frozenset({"meta", "header", "pointer", "node", "key", "value"})


class Span(NamedTuple):
    """Bytes ``start:stop`` of one kind.  ``table``: whose tree; "free list" is LMDB's own."""

    start: int
    stop: int
    kind: str
    table: str


class Meta(NamedTuple):
    page: int
    txn: int
    last_page: int
    free_root: int
    main_root: int


class PageMap:
    """``spans``: every byte in use, sorted; see ``IN_USE`` for the kinds."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.page_size = struct.unpack_from("<I", data, 16 + 24)[0]  # the free tree's pad field
        self.metas = sorted((self._meta(page) for page in (0, 1)), key=lambda meta: meta.txn)
        self.size = (self.newest.last_page + 1) * self.page_size
        self.spans = [Span(page * self.page_size, page * self.page_size + META_SIZE, "meta", "")
                      for page in (0, 1)]  # fmt: skip
        self._tree(self.newest.free_root, "free list")
        self._tree(self.newest.main_root, "main")
        self.spans.sort()
        self._starts = [span.start for span in self.spans]

    @property
    def newest(self) -> Meta:
        return self.metas[1]

    def span_at(self, offset: int) -> Span | None:
        """What the byte at ``offset`` is for; ``None`` if nothing in the newest state uses it."""
        place = bisect.bisect_right(self._starts, offset) - 1
        if place >= 0 and offset < self.spans[place].stop:
            return self.spans[place]
        return None

    def of_kind(self, *kinds: str) -> list[Span]:
        return [span for span in self.spans if span.kind in kinds]

    def _meta(self, page: int) -> Meta:
        magic, _, _, _, free, main, last, txn = _META.unpack_from(
            self._data, page * self.page_size + _HEADER.size
        )
        if magic != _MAGIC:
            raise ValueError("not an LMDB file")
        return Meta(page, txn, last, _TREE.unpack(free)[-1], _TREE.unpack(main)[-1])

    def _note(self, start: int, size: int, kind: str, table: str) -> None:
        if size:
            self.spans.append(Span(start, start + size, kind, table))

    def _tree(self, root: int, table: str) -> None:
        todo = [] if root == _NO_PAGE else [root]
        while todo:
            todo += self._page(todo.pop(), table)

    def _page(self, number: int, table: str) -> list[int]:
        """Note one branch or leaf page; return its child pages."""
        start = number * self.page_size
        flags = self._flags(start)
        if flags & _BRANCH:
            places = enumerate(self._pointers(start, table))
            return [self._branch(start + at, table, first=n == 0) for n, at in places]
        assert flags & _LEAF, f"page {number} is neither a branch nor a leaf"
        self._leaves(start, table)
        return []

    def _flags(self, start: int) -> int:
        return int(_HEADER.unpack_from(self._data, start)[2])

    def _pointers(self, start: int, table: str) -> tuple[int, ...]:
        lower = _HEADER.unpack_from(self._data, start)[3]
        self._header(start, table)
        self._note(start + _HEADER.size, lower - _HEADER.size, "pointer", table)
        return struct.unpack_from(f"<{(lower - _HEADER.size) // 2}H", self._data, start + 16)

    def _leaves(self, start: int, table: str) -> None:
        """A leaf page, or the small page inside a node that holds a key's duplicates."""
        if self._flags(start) & _FIXED:  # values of one size, without nodes
            _, size, _, lower, _ = _HEADER.unpack_from(self._data, start)
            self._note(start, _HEADER.size, "header", table)
            self._note(start + _HEADER.size, (lower - _HEADER.size) // 2 * size, "value", table)
            return
        for at in self._pointers(start, table):
            self._leaf(start + at, table)

    def _branch(self, at: int, table: str, *, first: bool) -> int:
        low, high, upper, key_size = _NODE.unpack_from(self._data, at)
        self._note(at, _NODE.size, "node", table)
        # The first key of a branch stands for "less than everything": it is never compared.
        self._note(at + _NODE.size, key_size, "unread key" if first else "key", table)
        return int(low | high << 16 | upper << 32)

    def _leaf(self, at: int, table: str) -> None:
        low, high, flags, key_size = _NODE.unpack_from(self._data, at)
        key_at = at + _NODE.size
        value_at, value_size = key_at + key_size, low | high << 16
        self._note(at, _NODE.size, "node", table)
        self._note(key_at, key_size, "key", table)
        if flags & _BIG:
            self._note(value_at, 8, "node", table)
            self._overflow(struct.unpack_from("<Q", self._data, value_at)[0], value_size, table)
            return
        if flags & _SUBTREE:
            self._note(value_at, value_size, "node", table)
            name = table if flags & _DUPLICATES else self._data[key_at:value_at].decode()
            self._tree(_TREE.unpack_from(self._data, value_at)[-1], name)
        elif flags & _DUPLICATES:
            self._leaves(value_at, table)
        else:
            self._note(value_at, value_size, "value", table)

    def _overflow(self, number: int, size: int, table: str) -> None:
        start = number * self.page_size
        assert _HEADER.unpack_from(self._data, start)[2] & _OVERFLOW
        self._header(start, table)
        self._note(start + _HEADER.size, size, "value", table)

    def _header(self, start: int, table: str) -> None:
        self._note(start, 8, "header", table)
        self._note(start + 8, 2, "unread pad", table)  # only pages of fixed-size keys have one
        self._note(start + 10, 6, "header", table)
