"""What a reader keeps of objects that it has read: whole frames, single objects, and places.

All are bounded by bytes, and several threads use them at once.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Sequence

from blockvault.errors import Damaged
from blockvault.ids import object_id, short
from blockvault.store import tables
from blockvault.store.frames import Objects

AS_WRITTEN = 512 << 10
"""Bytes of a decoded frame that nobody has packed, at most."""
PACKED_TIMES = 2

_PLACE_BITS = tables.MAX_PLACE.bit_length()
_ID_BYTES = 5
"""Of an id: the last ones name a word, the first is kept in it."""
_TAG_SHIFT = 8 * (_ID_BYTES - 1)


def checked(data: bytes, oid: bytes) -> bytes:
    """The object's bytes; ``Damaged`` if they are not what its id says."""
    if object_id(data) != oid:
        raise Damaged(
            f"object {short(oid)} is damaged: its bytes are not what was stored",
            kind="object-damaged",
        )
    return data


class DecodedFrame:
    """A decoded frame; each of its objects is hashed once, when it is first asked for."""

    __slots__ = ("_checked", "objects", "size")

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.size = len(objects.payload)
        self._checked: list[bytes | None] = [None] * len(objects)

    def proved(self, slot: int, oid: bytes) -> bytes | None:
        """The object, if it is in that slot."""
        if slot >= len(self._checked):
            return None
        data = self.objects[slot]
        # Compared with the id, so that a damaged index cannot pass one object for another.
        if self._checked[slot] != oid:
            if object_id(data) != oid:
                return None
            self._checked[slot] = oid
        return data

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

    Beside the place, a word holds only eight bits of the id: another object may have them too, and
    an object may have moved since.  Whoever takes something from such a place has to prove it.
    """

    def __init__(self, count: int) -> None:
        self._mask = count - 1
        # The kernel gives a page when a word on it is first set: a short command pays for few.
        memory = mmap.mmap(-1, 8 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._words = memoryview(memory).cast("Q")

    def get(self, oid: bytes) -> int:
        """The place of the object; 0, which is none, if it is not known."""
        number = int.from_bytes(oid[:_ID_BYTES], "big")
        word = self._words[number & self._mask]
        return word & tables.MAX_PLACE if word >> _PLACE_BITS == number >> _TAG_SHIFT else 0

    def put(self, oid: bytes, place: int) -> None:
        number = int.from_bytes(oid[:_ID_BYTES], "big")
        self._words[number & self._mask] = number >> _TAG_SHIFT << _PLACE_BITS | place


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
