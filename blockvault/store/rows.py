"""Rows that tell when they are not what was written.

LMDB checks nothing: a flipped bit in a small row would be believed, and a branch would have another
name or a volume another root.  So every row of a table with byte keys ends in eight bytes::

    value ‖ BLAKE3(table ‖ 0x00 ‖ key ‖ value)[:8]

The key is part of it, since a row whose key changed must not pass for another row.  The index needs
none: what it leads to is proved by its hash.
"""

from __future__ import annotations

from blake3 import blake3

from blockvault.errors import Damaged

CHECK_SIZE = 8


def seal(table: str, key: bytes, value: bytes) -> bytes:
    """The row as it is stored."""
    return value + _check(table, key, value)


def unseal(table: str, key: bytes, row: bytes | memoryview) -> bytes:
    """The value of a stored row; ``Damaged`` if it is not what was stored under this key."""
    data = bytes(row)
    value = data[:-CHECK_SIZE]
    if data[len(value) :] != _check(table, key, value) or len(data) < CHECK_SIZE:
        raise Damaged(
            f"a row of table '{table}' is not what was written; 'blockvault verify' tells what is "
            "damaged, 'blockvault rebuild' mends what the log still says",
            kind="row-damaged",
        )
    return value


def _check(table: str, key: bytes, value: bytes) -> bytes:
    return blake3(b"\0".join((table.encode(), key + value))).digest(CHECK_SIZE)
