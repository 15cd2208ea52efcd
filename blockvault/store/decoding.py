"""Frames, decoded once: those that were used last are kept in memory, up to a number of bytes."""

from __future__ import annotations

import threading

from blockvault.store import frames
from blockvault.store.caches import DecodedFrame, FrameCache
from blockvault.store.frames import Objects
from blockvault.store.types import Reader

_LOCKS = 16


class FrameReader:
    """Reads frames by number, from any thread; ``cache`` is where the decoded ones are."""

    def __init__(self, cache_bytes: int) -> None:
        self.cache = FrameCache(cache_bytes)
        self._decoding = [threading.Lock() for _ in range(_LOCKS)]

    def get(self, reader: Reader, number: int) -> Objects | None:
        """A decoded frame; a raw one lies in the map until the transaction ends."""
        cached = self.cache.get(number)
        if cached is not None:
            return cached.objects
        # Threads that read one behind the other come to the same frame: only one decodes it.
        with self._decoding[number % len(self._decoding)]:
            cached = self.cache.get(number)
            if cached is not None:
                return cached.objects
            view = reader.frame_view(number)
            if view is None:
                return None
            objects = frames.decode(view)
            reader.touched(view)
            if isinstance(objects.payload, bytes):
                self.cache.put(number, objects)
            return objects

    def of_size(self, reader: Reader, size: int, number: int) -> DecodedFrame | None:
        """The same with what is known of its objects; None if these are not all of that size."""
        objects = self.get(reader, number)
        if objects is None or objects.uniform != size:
            return None
        return self.cache.get(number) or DecodedFrame(objects)
