"""Names of the tables, and the keys that are not plain text.

Byte-keyed tables are sorted as bytes, so composite keys are big-endian.  ``frames`` and ``log``
have LMDB integer keys (machine order), which makes appending a large value one step; they are
reached through their own methods of a Reader, never through ``get`` and ``scan``.
"""

from __future__ import annotations

import struct

from blockvault.errors import BadRequest, Damaged

META = "meta"
INDEX = "index"
RUNS = "runs"
DEAD = "dead"
PROJECTIONS = ("refs", "branches", "waypoints", "trail", "snapshots")
KEYED = (META, INDEX, RUNS, DEAD, *PROJECTIONS)
"""Tables with byte keys, for ``get``, ``put``, ``delete``, ``scan`` and ``clear``."""

CHECKED = (META, RUNS, DEAD, *PROJECTIONS)
"""Those of them whose rows have a check; see ``rows``."""

FRAMES = "frames"
LOG = "log"
NUMBERED = (FRAMES, LOG)
"""Tables whose keys are integers."""

FLAGS = {
    FRAMES: {"integerkey": True},
    LOG: {"integerkey": True},
    INDEX: {"dupsort": True, "dupfixed": True},
}
"""How LMDB keeps the tables that are not plain; see ``index`` for the last."""

INDEX_PARTS = 256
"""The index can be tightened in so many parts, by the first byte of the ids."""

MAX_KEY = 511
"""LMDB's limit on the length of a key, in bytes."""

FIRST = b"\0"
"""The key of the row that stands before all others of a table; see ``rows``."""

MAX_NUMBER = (1 << 63) - 1
MAX_FRAME_NUMBER = (1 << 40) - 1
MAX_PLACE = MAX_FRAME_NUMBER << 16 | 0xFFFF
SLOT_BITS = 16

_U64 = struct.Struct(">Q")
_PAIR = struct.Struct(">QQ")
_MACHINE = struct.Struct("=Q")

u64_key = _U64.pack
"""``u64_key(number)``: the key of a branch, 8 bytes, sorted by number."""

pair_key = _PAIR.pack
"""``pair_key(branch, seq)``: the key of a waypoint or a trail entry, 16 bytes."""

integer_key = _MACHINE.pack
"""The key of a numbered table; LMDB compares it as a machine word."""

pack_location = _U64.pack


def number_of_key(key: bytes | memoryview) -> int:
    """Inverse of ``integer_key``; ``Damaged`` for what cannot be the key of a numbered table."""
    if len(key) != _MACHINE.size:
        raise Damaged(f"a numbered table has a key of {len(key)} bytes", kind="bad-encoding")
    number: int = _MACHINE.unpack(key)[0]
    return number


def location(frame: int, slot: int) -> int:
    """Where an object is: frame number (40 bits) and its place in the frame (16 bits)."""
    return frame << SLOT_BITS | slot


def split_location(where: int) -> tuple[int, int]:
    """Inverse of ``location``: (frame number, slot)."""
    return where >> SLOT_BITS, where & 0xFFFF


def check_key(key: bytes) -> bytes:
    """Return ``key`` if every store can hold it; ``BadRequest`` otherwise."""
    if not 0 < len(key) <= MAX_KEY or key == FIRST:
        raise BadRequest(
            f"a key has 1 to {MAX_KEY} bytes and is not the byte 0 alone; this one has {len(key)}"
        )
    return key
