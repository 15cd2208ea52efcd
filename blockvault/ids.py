"""Object ids: the BLAKE3-256 of an object's bytes, and nothing else.

An id names content, so equal content has one id wherever it came from.  ``ZERO_ID`` is not a
hash: it stands for a block, or a whole subtree, that reads as zeros and is never stored.
"""

from __future__ import annotations

from blake3 import blake3

ID_SIZE = 32
ZERO_ID = bytes(ID_SIZE)
SHORT_HEX = 12
MIN_PREFIX_HEX = 4


def object_id(data: bytes | memoryview) -> bytes:
    """Return the 32-byte id of ``data``; all zeros are hashed like anything else."""
    return blake3(data).digest()


def short(oid: bytes) -> str:
    """The form of an id that people read: its first twelve hex digits."""
    return oid.hex()[:SHORT_HEX]
