"""Log records: the events of one commit, chained to everything before them.

::

    offset  size  field
    0       1     version = 1
    1       1     codec of the payload: 0 raw, 1 zstd
    2       2     reserved = 0
    4       4     count: events in the record, at least 1
    8       4     raw_size: bytes of the payload when decoded, at most 64 MiB
    12      8     time_us: microseconds since 1970, of the record's first event (signed)
    20      32    chain
    52      8     check: first bytes of BLAKE3("log" ‖ 0x00 ‖ first_seq u64 ‖ the 52 bytes before)
    60      …     payload: the packed list of event rows

All numbers are little-endian.  The check lets a header be believed without its payload, and keeps a
damaged record from passing for one that was pruned.  The key is the seq of the first event; its
events have consecutive seqs, and the next record's key is ``first_seq + count``.  ::

    chain_0 = BLAKE3("blockvault log 1" ‖ vault_id)
    chain_i = BLAKE3(chain_{i-1} ‖ first_seq u64 ‖ time_us i64 ‖ count u32 ‖ decoded payload)

so the last chain value names the whole history.  The rows' meaning is the model's business.

Records that were pruned are replaced by a *gap*: a record with the codec number 2 and no payload,
under the first of their keys, with the count of all their events and the time and chain of the last
of them.  What follows continues that chain; which gaps are lawful, the newest prune's event says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from blockvault.errors import BadRequest, Damaged
from blockvault.store.codec import Codec, decompress

VERSION = 1
GAP = 2
"""The codec number of a record that stands for pruned ones."""
MAX_RAW = 64 << 20
COMPRESS_FROM = 256
"""Shorter payloads are mostly ids and names, which do not compress: they are not tried."""

_HEADER = struct.Struct("<BBHIIq32s")
_CHECK_SIZE = 8
_CHAINED = struct.Struct("<QqI")
HEADER_SIZE = _HEADER.size + _CHECK_SIZE
_RAW = Codec("none")


@dataclass(frozen=True, slots=True)
class Record:
    """What one commit appended: ``count`` events from ``first_seq`` on, their packed rows.

    A ``pruned`` one is a gap: it has no rows.
    """

    first_seq: int
    count: int
    time_us: int
    payload: bytes
    chain: bytes
    pruned: bool = False

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.count - 1


class Last(NamedTuple):
    """The end of the log: seq of the last event, time of its record, chain."""

    seq: int
    time_us: int
    chain: bytes


def genesis(vault_id: bytes) -> bytes:
    """chain_0, which binds the log to its vault."""
    return blake3(b"blockvault log 1" + vault_id).digest()


def next_chain(chain: bytes, first_seq: int, time_us: int, count: int, payload: bytes) -> bytes:
    """The chain value of the record that follows ``chain``."""
    hasher = blake3(chain)
    hasher.update(_CHAINED.pack(first_seq, time_us, count))
    hasher.update(payload)
    return hasher.digest()


def encode(record: Record, codec: Codec) -> bytes:
    """Encode a record whose chain is already computed."""
    if record.pruned:
        return _headed(record, GAP, 0)
    if len(record.payload) > MAX_RAW:
        raise BadRequest(f"{len(record.payload):,} bytes of events do not fit in one commit")
    chosen = codec if len(record.payload) >= COMPRESS_FROM else _RAW
    number, payload = chosen.compress(record.payload)
    return _headed(record, number, len(record.payload)) + payload


def _headed(record: Record, codec: int, raw_size: int) -> bytes:
    header = _HEADER.pack(VERSION, codec, 0, record.count, raw_size, record.time_us, record.chain)
    return header + _check(record.first_seq, header)


def _check(first_seq: int, header: bytes) -> bytes:
    return blake3(b"log\0" + first_seq.to_bytes(8, "little") + header).digest(_CHECK_SIZE)


def peek(first_seq: int, data: bytes | memoryview) -> Last:
    """The record's end, from its header alone."""
    _, count, _, time_us, chain = _header(first_seq, data)
    return Last(first_seq + count - 1, time_us, chain)


def is_gap(found: tuple[int, bytes | memoryview] | None) -> bool:
    """Whether an encoded record, as (key, bytes), stands for pruned ones."""
    return found is not None and _header(*found)[0] == GAP


def decode(first_seq: int, data: bytes | memoryview, before: bytes) -> Record:
    """Decode the record at ``first_seq``; ``before`` is the chain value it must continue."""
    codec, count, raw_size, time_us, chain = _header(first_seq, data)
    what = f"the log record at event {first_seq}"
    packed = memoryview(data)[HEADER_SIZE:]
    if codec == GAP and not packed and not raw_size:
        return Record(first_seq, count, time_us, b"", chain, pruned=True)
    payload = bytes(decompress(codec, packed, raw_size, MAX_RAW, what))
    if next_chain(before, first_seq, time_us, count, payload) != chain:
        raise Damaged(f"{what} does not continue the log before it", kind="broken-chain")
    return Record(first_seq, count, time_us, payload, chain)


def _header(first_seq: int, data: bytes | memoryview) -> tuple[int, int, int, int, bytes]:
    if len(data) < HEADER_SIZE:
        raise Damaged(f"the log record at event {first_seq} is cut short", kind="bad-encoding")
    header = bytes(data[: _HEADER.size])
    version, codec, reserved, count, raw_size, time_us, chain = _HEADER.unpack(header)
    sound = data[_HEADER.size : HEADER_SIZE] == _check(first_seq, header)
    if not sound or version != VERSION or reserved or not count:
        raise Damaged(f"the log record at event {first_seq} has a bad header", kind="bad-encoding")
    return codec, count, raw_size, time_us, chain
