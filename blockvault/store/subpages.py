"""The few duplicates of a key that LMDB keeps within its node, checked where its verifier does not.

While an object index is small, the rows that share a key lie in a *sub-page*: a page header of 16
bytes and an array of rows, as the value of the node.  LMDB believes that header, and a wrong one
ends the process.  For ``n`` rows of ``size`` bytes in a value of ``length`` it can say one thing::

    pad = size    flags = leaf, array, sub-page    lower = 16 + 2n    upper = length - n (size - 2)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from blockvault.store import pages
from blockvault.store.pages import Meta, Node

_HEADER = 16
_EXPECTED = pages.LEAF | pages.LEAF2 | pages.SUBPAGE


def damaged(path: Path, table: str, size: int) -> list[str]:
    """What is wrong with the sub-pages of a table with duplicates of ``size`` bytes."""
    with path.open("rb") as file:
        metas = [pages.read_meta(file.fileno(), number) for number in (0, 1)]
        meta = max(filter(None, metas))
        roots = [
            pages.tree_root(node.value)
            for node in _nodes(file.fileno(), meta, meta.roots[1])
            if node.flags & pages.SUBTREE and node.key == table.encode()
        ]
        return [
            f"table '{table}': the duplicates of key {node.key.hex()} have a bad header"
            for root in roots
            for node in _nodes(file.fileno(), meta, root)
            if node.flags & pages.DUPLICATES and not node.flags & pages.SUBTREE
            if not _sound(node.value, size)
        ]


def _sound(value: bytes, size: int) -> bool:
    header = pages.header_of(value)
    if header is None:
        return False
    pad, flags, lower, upper = header
    rows = (lower - _HEADER) // 2
    return (
        (pad, flags & ~pages.DIRTY, lower % 2) == (size, _EXPECTED, 0)
        and 1 <= rows <= (len(value) - _HEADER) // size
        and upper == len(value) - rows * (size - 2)
    )


def _nodes(file: int, meta: Meta, root: int) -> Iterator[Node]:
    """The nodes of all leaves of one tree; pages that make no sense are passed over."""
    waiting = [root]
    seen = set(waiting)
    while waiting:
        number = waiting.pop()
        if not 2 <= number <= meta.last_page:
            continue
        page = os.pread(file, meta.page_size, number * meta.page_size)
        header = pages.header_of(page)
        if header is None or header[1] & pages.LEAF2:
            continue
        for node in pages.nodes(page):
            if not header[1] & pages.BRANCH:
                yield node
            elif node.child not in seen:
                seen.add(node.child)
                waiting.append(node.child)
