"""What a reader keeps of objects: whole frames, single objects, places, and what it will be asked.

All are bounded by bytes, and several threads use them at once.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence

from blockvault.errors import Damaged
from blockvault.ids import ID_SIZE, object_id, short
from blockvault.store import tables
from blockvault.store.frames import Objects

AS_WRITTEN = 512 << 10
"""Bytes of a decoded frame that nobody has packed, at most."""
PACKED_TIMES = 8

_PLACE_BITS = tables.MAX_PLACE.bit_length()
_ID_BYTES = 6
"""Of an id: the last ones name two words, the first is kept in one of them."""
_TAG_SHIFT = 8 * (_ID_BYTES - 1)
_OTHER_SHIFT = 20
_BEGINNING = struct.Struct(f"=I{ID_SIZE - 4}x")


def checked(data: bytes, oid: bytes) -> bytes:
    """The object's bytes; ``Damaged`` if they are not what its id says."""
    if object_id(data) != oid:
        raise Damaged(
            f"object {short(oid)} is damaged: its bytes are not what was stored",
            kind="object-damaged",
        )
    return data


class DecodedFrame:
    """A decoded frame; each of its objects is hashed once, when it is first asked for.

    ``ids`` are those of the objects that were hashed.
    """

    __slots__ = ("ids", "objects", "size")

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.size = len(objects.payload)
        self.ids: list[bytes | None] = [None] * len(objects)

    def id_of(self, slot: int) -> bytes:
        """What is in that slot, whatever it was taken for."""
        oid = self.ids[slot]
        if oid is None:
            oid = self.ids[slot] = object_id(self.objects[slot])
        return oid

    def proved(self, slot: int, oid: bytes) -> bytes | None:
        """The object, if it is in that slot; a damaged index cannot pass another one for it."""
        if slot >= len(self.ids):
            return None
        data, known = self.objects[slot], self.ids[slot]
        if known is None:
            known = self.ids[slot] = object_id(data)
        return data if known == oid else None

    def get(self, slot: int, oid: bytes) -> bytes:
        """The same where it has to be there; ``Damaged`` if it is not."""
        data = self.proved(slot, oid)
        return checked(self.objects[slot], oid) if data is None else data


class ObjectCache:
    """Objects that were proved, the ones that came first making room, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._objects: OrderedDict[bytes, bytes] = OrderedDict()
        self._guard = threading.Lock()
        self.get = self._objects.get

    def get_many(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Those of ``ids`` that are here."""
        get = self._objects.get
        return {oid: data for oid in ids if (data := get(oid)) is not None}

    def put(self, oid: bytes, data: bytes) -> None:
        with self._guard:
            if oid not in self._objects:
                self._objects[oid] = data
                self._size += len(data)
            while self._size > self._limit:
                self._size -= len(self._objects.popitem(last=False)[1])

    def clear(self) -> None:
        with self._guard:
            self._objects.clear()
            self._size = 0


class PlaceCache:
    """Where objects were found: ``count`` words (a power of two), each for one object at a time.

    An object may be in either of two words, which different bits of its id name.  Beside the place,
    a word holds only eight bits of the id: another object may have them too, and an object may have
    moved since.  Whoever takes something from such a place has to prove it.
    """

    def __init__(self, count: int) -> None:
        self._mask = count - 1
        # The kernel gives a page when a word on it is first set: a short command pays for few.
        memory = mmap.mmap(-1, 8 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._words = memoryview(memory).cast("Q")

    def get(self, oid: bytes) -> int:
        """The place of the object; 0, which is none, if it is not known."""
        number = int.from_bytes(oid[:_ID_BYTES], "big")
        tag = number >> _TAG_SHIFT
        word = self._words[number & self._mask]
        if word >> _PLACE_BITS != tag or not word:
            word = self._words[number >> _OTHER_SHIFT & self._mask]
        return word & tables.MAX_PLACE if word >> _PLACE_BITS == tag else 0

    def put(self, oid: bytes, place: int) -> None:
        number = int.from_bytes(oid[:_ID_BYTES], "big")
        tag, at = number >> _TAG_SHIFT, number & self._mask
        taken = self._words[at]
        if taken and taken >> _PLACE_BITS != tag:
            other = number >> _OTHER_SHIFT & self._mask
            if not self._words[other] or self._words[other] >> _PLACE_BITS == tag:
                at = other
        self._words[at] = tag << _PLACE_BITS | place


class Expected:
    """Objects that may be asked for: ``count`` flags (a power of two), each for many objects.

    All that were added are in it, until they are so many that most others would seem to be.
    """

    def __init__(self, count: int) -> None:
        self._mask = count - 1
        self._count = count
        self._flags = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._added = 0

    def add(self, ids: bytes) -> bool:
        """Add ids that stand one after another; False if all others had to be forgotten."""
        flags, mask = self._flags, self._mask
        self._added += len(ids) // ID_SIZE
        full = self._added > self._count
        if full:
            self._added = len(ids) // ID_SIZE
            flags[:] = bytes(self._count)
        for (number,) in _BEGINNING.iter_unpack(ids):
            flags[number & mask] = 1
        return not full

    def __contains__(self, oid: bytes) -> bool:
        return bool(self._flags[_BEGINNING.unpack(oid)[0] & self._mask])


class FrameCache:
    """The most recently used decoded frames, up to a number of bytes.

    Up to ``PACKED_TIMES`` as many once there are packed frames among them: what lies together in
    one of those is needed at more places of a disk, and decoding it again costs eight times more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._packed_limit = limit * PACKED_TIMES
        self._size = 0
        self._frames: OrderedDict[int, DecodedFrame] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, number: int) -> DecodedFrame | None:
        with self._guard:
            cached = self._frames.get(number)
            if cached is not None:
                self._frames.move_to_end(number)
            return cached

    def put(self, number: int, objects: Objects) -> DecodedFrame:
        cached = DecodedFrame(objects)
        with self._guard:
            replaced = self._frames.pop(number, None)
            self._size += cached.size - (replaced.size if replaced else 0)
            self._frames[number] = cached
            if cached.size > AS_WRITTEN:
                self._limit = self._packed_limit
            while self._size > self._limit and len(self._frames) > 1:
                self._size -= self._frames.popitem(last=False)[1].size
        return cached

    def clear(self) -> None:
        with self._guard:
            self._frames.clear()
            self._size = 0
