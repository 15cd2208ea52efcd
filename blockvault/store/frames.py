"""Frames: objects that are compressed and stored together, as one value.

::

    offset  size  field
    0       1     version = 1
    1       1     codec: 0 raw, 1 zstd
    2       2     count: objects in the frame, 1..65535
    4       4     raw_size: bytes of all objects together, at most 16 MiB
    8       4     uniform: the length of every object if they are alike, else 0
    12      4×n   lengths, only if uniform is 0
    …             payload: the objects one after another, encoded with the codec

All numbers are little-endian.  A frame does not name its objects: the index does, and their ids
prove what was read.  A frame whose codec is raw can be sliced where it lies.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from blockvault.errors import BadRequest, Damaged
from blockvault.store.codec import RAW, Codec, decompress

__all__ = ["Codec", "Frame", "Objects", "decode", "encode", "raw_object"]

VERSION = 1
MAX_OBJECTS = 0xFFFF
MAX_RAW = 16 << 20

_HEADER = struct.Struct("<BBHII")
HEADER_SIZE = _HEADER.size


class Frame(NamedTuple):
    """An encoded frame on its way to the store, with the ids of its objects in order.

    ``absent_at`` is the number of a commit in which none of them was known, so that a transaction
    that follows it need not look again; 0 if nobody looked.
    """

    data: bytes
    ids: tuple[bytes, ...]
    absent_at: int = 0


class Objects:
    """The objects of a decoded frame, by place.

    A raw frame's payload still belongs to the buffer it was decoded from: copy what outlives it.
    """

    __slots__ = ("count", "ends", "payload", "uniform")

    def __init__(
        self, payload: bytes | memoryview, count: int, uniform: int, ends: Sequence[int]
    ) -> None:
        self.payload = payload
        self.count = count
        self.uniform = uniform
        self.ends = ends

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, slot: int) -> bytes:
        """A copy of object ``slot``; ``Damaged`` if the frame does not hold so many."""
        if not 0 <= slot < self.count:
            raise Damaged(f"the index points at object {slot} of {self.count}", kind="bad-index")
        if self.uniform:
            start = slot * self.uniform
            return bytes(self.payload[start : start + self.uniform])
        start = self.ends[slot - 1] if slot else 0
        return bytes(self.payload[start : self.ends[slot]])

    def __iter__(self) -> Iterator[bytes]:
        return (self[slot] for slot in range(self.count))


def encode(objects: Sequence[bytes | memoryview], codec: Codec) -> bytes:
    """Encode 1 to 65,535 objects of at most 16 MiB together."""
    return shrunk(plain(objects), codec)


def plain(objects: Sequence[bytes | memoryview]) -> bytes:
    """A frame of these objects that is not compressed."""
    lengths = list(map(len, objects))
    count, size = len(lengths), sum(lengths)
    if not 1 <= count <= MAX_OBJECTS or size > MAX_RAW:
        raise BadRequest(f"{count} objects of {size:,} bytes do not fit in one frame")
    uniform = lengths[0] if min(lengths) == max(lengths) else 0
    table = b"" if uniform else struct.pack(f"<{count}I", *lengths)
    return b"".join((_HEADER.pack(VERSION, RAW, count, size, uniform), table, *objects))


def shrunk(frame: bytes, codec: Codec) -> bytes:
    """A frame that is not compressed, compressed if that is worth it; else itself, not a copy."""
    _, _, count, size, uniform = _HEADER.unpack_from(frame)
    start = len(frame) - size
    number, payload = codec.compress(memoryview(frame)[start:])
    if number == RAW:
        return frame
    header = _HEADER.pack(VERSION, number, count, size, uniform)
    return b"".join((header, frame[HEADER_SIZE:start], payload))


def decode(data: bytes | memoryview) -> Objects:
    """Decode a frame; ``Damaged`` on anything that ``encode`` cannot have written."""
    codec, count, raw_size, uniform = _header(data)
    start = HEADER_SIZE
    ends: Sequence[int] = ()
    if not uniform:
        ends = _ends(data, count)
        start += 4 * count
    if (uniform * count if uniform else ends[-1]) != raw_size:
        raise Damaged("a frame's lengths do not add up", kind="bad-encoding")
    payload = decompress(codec, memoryview(data)[start:], raw_size, MAX_RAW, "a frame")
    return Objects(payload, count, uniform, ends)


def object_count(head: bytes | memoryview) -> int:
    """How many objects a frame holds, from its first ``HEADER_SIZE`` bytes."""
    return _header(head)[1]


def raw_object(data: memoryview, slot: int) -> bytes | None:
    """Object ``slot`` of a raw frame of equal objects, copied alone; None for any other frame."""
    found = raw_objects(data, (slot,))
    return found[0] if found else None


def raw_objects(data: memoryview, slots: Sequence[int]) -> list[bytes] | None:
    """``raw_object`` for several; None if the frame is another kind or does not hold them all."""
    if len(data) < HEADER_SIZE:
        return None
    version, codec, count, raw_size, uniform = _HEADER.unpack_from(data)
    if version != VERSION or codec != RAW or not uniform or max(slots) >= count:
        return None
    if uniform * count != raw_size or len(data) != HEADER_SIZE + raw_size:
        return None
    starts = [HEADER_SIZE + slot * uniform for slot in slots]
    return [bytes(data[start : start + uniform]) for start in starts]


def _header(data: bytes | memoryview) -> tuple[int, int, int, int]:
    if len(data) < HEADER_SIZE:
        raise Damaged("a frame ends in its header", kind="bad-encoding")
    version, codec, count, raw_size, uniform = _HEADER.unpack_from(data)
    if version != VERSION:
        raise Damaged(f"a frame has version {version}, not {VERSION}", kind="bad-encoding")
    if not count:
        raise Damaged("a frame holds no object", kind="bad-encoding")
    return codec, count, raw_size, uniform


def _ends(data: bytes | memoryview, count: int) -> list[int]:
    try:
        return list(accumulate(struct.unpack_from(f"<{count}I", data, HEADER_SIZE)))
    except struct.error:
        raise Damaged("a frame ends in its lengths", kind="bad-encoding") from None
