"""The Bloom filter between two processes: a file beside the database.

A server that begins with an empty filter looks up all that its guest writes until the index has
been read into it, for the first 280,000 writes if five million objects are indexed, and these
look-ups take a fifth of its speed.  So who closes a vault with a large index leaves its filter,
compressed: most of its bits are not set, and one to two bytes an object say which are::

    offset  size  field
    0       8     magic "bvbloom2"
    8       16    token
    24      8     clock: the filter has what was indexed before the frame of this number, u64
    32      8     parts: only ids whose first byte is less were looked at, u64
    40      1     codec of the bits, as in a frame
    41      32    BLAKE3 over the 41 bytes before and what follows
    73      …     the bits, encoded

The row ``filter`` of the table ``meta`` has the same token, new for each file: so a file that does
not belong to this very database, as when one of the two was restored from a copy, is not believed.
What was indexed since then lies in the frames from ``clock`` on.  Nothing is synced: what a power
cut leaves is no file, or one whose hash is wrong.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from blockvault import files
from blockvault.errors import Damaged
from blockvault.store.codec import Codec, decompress

NAME = "bloom"
META_KEY = b"filter"
TOKEN_SIZE = 16

_MAGIC = b"bvbloom2"
_HEAD = struct.Struct("<8s16sQQB")
_DIGEST_SIZE = 32
_CODEC = Codec("zstd:1")


class Kept(NamedTuple):
    """A filter as the file has it."""

    clock: int
    parts: int
    bits: bytearray


def save(directory: Path, token: bytes, kept: Kept) -> None:
    """Put the file in the place of an older one, at once; ``OSError`` if it cannot be written.

    For one process at a time: whoever has the write transaction.
    """
    codec, packed = _CODEC.compress(bytes(kept.bits))
    head = _HEAD.pack(_MAGIC, token, kept.clock, kept.parts, codec)
    content = b"".join((head, _digest(head, packed), packed))
    files.replace(directory / NAME, content, alone=True)


def load(directory: Path, token: bytes, size: int) -> Kept | None:
    """The filter of ``size`` bytes that was saved with this token, whole; else None."""
    try:
        with open(directory / NAME, "rb") as file:
            head, digest = file.read(_HEAD.size), file.read(_DIGEST_SIZE)
            packed = file.read(size + 1)
        magic, found, clock, parts, codec = _HEAD.unpack(head)
        if (magic, found) != (_MAGIC, token) or _digest(head, packed) != digest:
            return None
        return Kept(clock, parts, bytearray(decompress(codec, packed, size, size, "the filter")))
    except (OSError, struct.error, Damaged):
        return None


def _digest(head: bytes, packed: bytes | memoryview) -> bytes:
    return blake3(head).update(packed).digest(_DIGEST_SIZE)
