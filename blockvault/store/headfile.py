"""The head file: an independent record of the newest commits, to catch a silent rollback.

LMDB has two meta pages and uses the newer one that looks whole.  A flipped bit can make it fall
back to the older commit without a word, and so can a restored ``data.mdb``.  After each commit one
64-byte slot of the file ``head`` (64 slots, the one of LMDB's transaction id modulo 64) is
rewritten, without a sync::

    offset  size  field
    0       8     magic "bvhead 1"
    8       8     LMDB transaction id, u64
    16      8     seq of the last event in the log, u64
    24      32    chain of the last log record
    56      8     first 8 bytes of BLAKE3 over the 56 bytes before

The slot is written when its commit is already durable, so the newest valid slot may be older than
the database but never newer.  A torn slot fails its checksum and counts for nothing.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from blockvault import files
from blockvault.store.eventlog import Last

MAGIC = b"bvhead 1"
SLOTS = 64
SLOT_SIZE = 64

_SLOT = struct.Struct("<8sQQ32s")


class Slot(NamedTuple):
    """The head of the vault after one commit."""

    txn_id: int
    seq: int
    chain: bytes


def encode(slot: Slot) -> bytes:
    body = _SLOT.pack(MAGIC, slot.txn_id, slot.seq, slot.chain)
    return body + blake3(body).digest(8)


def decode(data: bytes) -> Slot | None:
    """None for a slot that was never written, is torn, or is damaged."""
    if len(data) != SLOT_SIZE or data[:8] != MAGIC:
        return None
    if blake3(data[:56]).digest(8) != data[56:]:
        return None
    return Slot(*_SLOT.unpack(data[:56])[1:])


class HeadFile:
    """An open head file; its descriptor also carries the writers' queue (``writelock``)."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.descriptor = (
            files.opened(path) if writable else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        )

    def newest(self) -> Slot | None:
        """The valid slot of the latest commit, or None."""
        data = os.pread(self.descriptor, SLOTS * SLOT_SIZE, 0)
        slots = (decode(data[at : at + SLOT_SIZE]) for at in range(0, len(data), SLOT_SIZE))
        return max((slot for slot in slots if slot), key=lambda s: (s.seq, s.txn_id), default=None)

    def note(self, txn_id: int, last: Last) -> None:
        """Record a commit that is already durable."""
        data = encode(Slot(txn_id, last.seq, last.chain))
        # If this fails the commit stands: an older slot is still true, only less watchful.
        with contextlib.suppress(OSError):
            os.pwrite(self.descriptor, data, txn_id % SLOTS * SLOT_SIZE)

    def close(self) -> None:
        os.close(self.descriptor)
