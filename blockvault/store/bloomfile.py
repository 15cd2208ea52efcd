"""The Bloom filter between two processes: a file beside the database.

A server that begins with an empty filter looks up all that its guest writes for the next 280,000
writes, if five million objects are indexed, and these look-ups take a fifth of its speed.  So who
closes a vault with a large index leaves its filter::

    offset  size   field
    0       8      magic "bvbloom1"
    8       16     token
    24      8      clock: the filter has what was indexed before the frame of this number, u64
    32      8      parts: only ids whose first byte is less were looked at, u64
    40      32     BLAKE3 over the 40 bytes before and the bits
    72      8 MiB  the bits

The row ``filter`` of the table ``meta`` has the same token, new for each file: so a file that does
not belong to this very database, as when one of the two was restored from a copy, is not believed.
What was indexed since then lies in the frames from ``clock`` on.  Nothing is synced: what a power
cut leaves is no file, or one whose hash is wrong.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

NAME = "bloom"
META_KEY = b"filter"
TOKEN_SIZE = 16

_MAGIC = b"bvbloom1"
_HEAD = struct.Struct("<8s16sQQ")
_DIGEST_SIZE = 32


class Kept(NamedTuple):
    """A filter as the file has it."""

    clock: int
    parts: int
    bits: bytearray


def save(directory: Path, token: bytes, kept: Kept) -> None:
    """Put the file in the place of an older one, at once; ``OSError`` if it cannot be written.

    For one process at a time: whoever has the write transaction.
    """
    head = _HEAD.pack(_MAGIC, token, kept.clock, kept.parts)
    building = directory / f"{NAME}.new"
    try:
        descriptor = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.writelines((head, _digest(head, kept.bits), kept.bits))
        os.rename(building, directory / NAME)
    except BaseException:
        with contextlib.suppress(OSError):
            building.unlink()
        raise


def load(directory: Path, token: bytes, size: int) -> Kept | None:
    """The filter of ``size`` bytes that was saved with this token, whole; else None."""
    begins = _HEAD.size + _DIGEST_SIZE
    try:
        with open(directory / NAME, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != begins + size:
                return None
            head, digest = file.read(_HEAD.size), file.read(_DIGEST_SIZE)
            magic, found, clock, parts = _HEAD.unpack(head)
            if (magic, found) != (_MAGIC, token):
                return None
            bits = bytearray(size)
            if file.readinto(bits) != size:
                return None
    except OSError:
        return None
    return Kept(clock, parts, bits) if _digest(head, bits) == digest else None


def _digest(head: bytes, bits: bytearray) -> bytes:
    return blake3(head).update(bits).digest(_DIGEST_SIZE)
