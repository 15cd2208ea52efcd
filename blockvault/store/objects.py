"""Objects out of a store, by id, and proved.

``ObjectReader`` finds an object through the index and proves it with its hash before it leaves.  An
object in a raw frame is sliced out of the map, unless small reads are kept (``athand``); a
compressed frame is decoded once and kept in a bounded cache, since neighbours in a frame are mostly
neighbours on the disk too.  Whole leaves of blocks come together (``leaves``).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from blockvault.ids import object_id
from blockvault.store import frames, tables, workers
from blockvault.store.athand import AtHand
from blockvault.store.caches import DecodedFrame, ObjectCache, checked
from blockvault.store.decoding import FrameReader
from blockvault.store.frames import Objects
from blockvault.store.leaves import LeafReader
from blockvault.store.locating import Member, grouped, located, missing, places_of
from blockvault.store.runs import Leaf, Pieces, Trail
from blockvault.store.types import Reader, Store

CACHE_BYTES = 16 << 20
"""What a reader keeps of decoded frames.  Four times as much made no read faster, and long ones in
order slower: memory that was used a moment ago is still in the processor's cache."""

HOT_BYTES = 24 << 20
"""What a reader keeps of single objects: of a frame that small reads ask for, little is wanted."""

NODE_BYTES = 32 << 20
"""What a reader keeps of tree nodes that were just made: two folds, or more of small disks."""

FRAMES_A_SNAPSHOT = 16
"""Frames that one read transaction fetches at most, so that none lives long or has much mapped: of
a large file up to 2 MiB for each, of which it reads 256 KiB."""

PARALLEL_FROM = 4
"""Frames from which on ``get_many`` decodes in threads."""

FEW = 64
"""Objects that are looked up and read in one transaction."""

SMALL = 8
"""Objects of a frame up to which a read is small: what it decodes is kept in the file."""

SHORT_RUNS = 3
"""Runs of ``SMALL`` or fewer objects after which the rest is looked up one by one."""

Wanted = tuple[int, bytes, Sequence[int]]
"""A frame's number, the frame as it is stored, and which of its objects are wanted."""


class ObjectReader:
    """Reads objects by id, from any thread.  Every object is checked against its id."""

    def __init__(self, store: Store, cache_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self._frames = FrameReader(cache_bytes)
        self._cache = self._frames.cache
        self._hot = ObjectCache(HOT_BYTES)
        self._made = ObjectCache(NODE_BYTES)
        self._at_hand = AtHand(self._cache)
        self.keep_decoded = self._at_hand.keep_decoded
        self.expect, self.listen = self._at_hand.expect, self._at_hand.listen
        self._leaves = LeafReader(store, self._frames, self._at_hand)

    def get(self, oid: bytes) -> bytes:
        """The object's bytes; ``Damaged`` if it is missing or is not what was stored."""
        data = self._hot.get(oid) or self._made.get(oid)
        if data is None:
            data = self._found(oid)
            self._hot.put(oid, data)
        return data

    def keep_made(self, nodes: Mapping[bytes, bytes]) -> None:
        """Keep tree nodes that were made just now: reads and the next fold begin with them."""
        for oid, node in nodes.items():
            self._made.put(oid, node)

    def _found(self, oid: bytes) -> bytes:
        known = self._at_hand.known(oid)
        data = self._at_hand.take(known, oid)
        if data is not None:
            return data
        with self._store.read() as reader:
            found = reader.find(oid)
            if found is None:
                raise missing(oid)
            place, view = found
            number, slot = tables.split_location(place)
            data = None if self._at_hand.keeps else frames.raw_object(view, slot)
            if data is not None:
                return checked(data, oid)
            self._at_hand.remember(oid, place)
            data = None if place == known else self._at_hand.take(place, oid)
            if data is not None:
                return data
            reader.touched(view)
            return self._decoded(number, view, slot).get(slot, oid)

    def get_many(self, ids: Iterable[bytes]) -> dict[bytes, bytes]:
        """The bytes of each id; every frame is decoded once, many frames in several threads.

        Errors as for ``get``.
        """
        wanted = list(dict.fromkeys(ids))
        if len(wanted) == 1:
            return {wanted[0]: self.get(wanted[0])}
        found = self._made.get_many(wanted)
        if len(wanted) <= FEW:
            found.update(self._hot.get_many(wanted))
            if len(found) < len(wanted):
                self._take_known([oid for oid in wanted if oid not in found], found)
        if len(found) < len(wanted):
            found.update(self._found_many([oid for oid in wanted if oid not in found]))
        return found

    def _take_known(self, wanted: Sequence[bytes], found: dict[bytes, bytes]) -> None:
        """Take what can be had without a look into the index."""
        for oid in wanted:
            data = self._at_hand.take(self._at_hand.known(oid), oid)
            if data is not None:
                found[oid] = data
                self._hot.put(oid, data)

    def _found_many(self, wanted: Sequence[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        with self._store.read() as reader:
            if len(wanted) > SMALL:
                self._follow(reader, wanted, found)
            places = located(reader, wanted[len(found) :])
            if len(places) <= FEW:
                groups = grouped(places)
                found.update(self._take(reader, groups))
                self._remember(groups, found)
                return found
        found.update(self.get_placed(places))
        return found

    def places(self, ids: Sequence[bytes]) -> array[int]:
        """Where each object lies, for ``get_placed``."""
        return places_of(self._store, ids)

    def get_placed(self, placed: Sequence[tuple[int, bytes]]) -> dict[bytes, bytes]:
        """Objects by place and id; if a place is not right any more, they are looked up.

        Who has many to read sorts them by place: then each frame is decoded once.
        """
        found: dict[bytes, bytes] = {}
        groups = list(grouped(placed).items())
        for start in range(0, len(groups), FRAMES_A_SNAPSHOT):
            some = dict(groups[start : start + FRAMES_A_SNAPSHOT])
            with self._store.read() as reader:
                found.update(self._take(reader, some))
        return found

    def _follow(self, reader: Reader, wanted: Sequence[bytes], found: dict[bytes, bytes]) -> None:
        """Find the first of ``wanted`` by guessing: what was written together lies together.

        Only the beginning of each run is looked up; its hash tells whether an object is the next
        one.  Ends where an object has no neighbour, where the runs get short, or after so many
        frames as one snapshot may take.
        """
        short_runs = frames_met = 0
        while len(found) < len(wanted) and short_runs < SHORT_RUNS and frames_met < FEW:
            before = len(found)
            (place, oid), *neighbour = located(reader, wanted[before : before + 2])
            if neighbour and neighbour[0][0] != place + 1:
                return
            number, slot = tables.split_location(place)
            objects = self._frames.get(reader, number)
            if objects is None:
                return
            found[oid] = checked(objects[slot], oid)
            for at in range(slot + 1, min(slot + len(wanted) - before, objects.count)):
                oid, data = wanted[len(found)], objects[at]
                if object_id(data) != oid:
                    break
                found[oid] = data
            frames_met += 1
            short_runs += len(found) - before < SMALL

    def get_leaves(
        self, first: int, leaves: Sequence[Leaf], size: int, trail: Trail
    ) -> list[Pieces]:
        """All blocks of each leaf, as pieces that are to be joined; errors as for ``get``.

        ``first`` is the number of the first leaf, ``size`` that of a block; ``trail`` is of whoever
        read the leaves before, and perhaps the first one, and is behind all of them then.
        """
        return self._leaves.read(first, leaves, size, trail, self.get_placed)

    def get_runs(
        self, leaves: Sequence[Leaf], size: int, trail: Trail | None = None
    ) -> list[Pieces | None]:
        """The same, where one hash proves a leaf; None where that is not known or does not fit."""
        return self._leaves.runs(leaves, size, trail)

    def _take(self, reader: Reader, groups: Mapping[int, list[Member]]) -> dict[bytes, bytes]:
        """The objects of some frames: sliced out of raw ones, decoded out of the others."""
        found: dict[bytes, bytes] = {}
        encoded: dict[int, bytes] = {}
        for number, members in groups.items():
            cached = self._cache.get(number)
            if cached is not None:
                found.update((oid, cached.get(slot, oid)) for slot, oid in members)
                continue
            small = len(members) <= SMALL
            if small and self._take_kept(number, members, found):
                continue
            view = reader.frame_view(number)
            if view is None:
                # The frame is gone: its objects were moved to another one since they were located.
                found.update((oid, self.get(oid)) for _, oid in members)
                continue
            if (small and self._at_hand.keeps) or not _slice(view, members, found):
                # A copy: if one thread fails, another must not read on beyond the transaction.
                encoded[number] = bytes(view)
            reader.touched(view)
        wanted = [
            (number, data, [slot for slot, _ in groups[number]]) for number, data in encoded.items()
        ]
        for (number, _, _), cached in zip(wanted, self._decode_all(wanted), strict=True):
            found.update((oid, cached.get(slot, oid)) for slot, oid in groups[number])
        return found

    def _decode_all(self, wanted: Sequence[Wanted]) -> Iterable[DecodedFrame]:
        """Decode and keep frames, in threads if there are enough to be worth the hand-over."""
        if len(wanted) < PARALLEL_FROM:
            return self._decode_each(wanted)
        share = -(-len(wanted) // workers.WORKERS)
        parts = [wanted[at : at + share] for at in range(0, len(wanted), share)]
        return chain.from_iterable(workers.pool().map(self._decode_each, parts))

    def _decode_each(self, wanted: Sequence[Wanted]) -> list[DecodedFrame]:
        return [self._keep(number, frames.decode(data), asked) for number, data, asked in wanted]

    def _take_kept(self, number: int, members: Sequence[Member], found: dict[bytes, bytes]) -> bool:
        """Take a few objects of a frame out of the file; False if they are not all there."""
        kept: dict[bytes, bytes] = {}
        for slot, oid in members:
            data = self._at_hand.take(tables.location(number, slot), oid)
            if data is None:
                return False
            kept[oid] = data
        found.update(kept)
        return True

    def _keep(self, number: int, objects: Objects, asked: Sequence[int]) -> DecodedFrame:
        """Keep a decoded frame; if little of it was wanted, what will be asked for goes on disk."""
        cached = self._cache.put(number, objects)
        if len(asked) <= SMALL:
            self._at_hand.keep(number, cached, asked)
        return cached

    def close(self) -> None:
        """Forget everything that is cached."""
        self._cache.clear()
        self._hot.clear()
        self._made.clear()
        self._at_hand.close()

    def _decoded(self, number: int, view: memoryview, slot: int) -> DecodedFrame:
        cached = self._cache.get(number)
        if cached is None:
            objects = frames.decode(view)
            # A raw payload lies in the map, and must not outlive the transaction.
            objects.payload = bytes(objects.payload)
            cached = self._keep(number, objects, (slot,))
        return cached

    def _remember(self, groups: Mapping[int, list[Member]], found: Mapping[bytes, bytes]) -> None:
        """Where few objects of a frame were wanted, they may be asked for again by themselves."""
        for number, members in groups.items():
            if len(members) <= SMALL:
                for slot, oid in members:
                    self._hot.put(oid, found[oid])
                    self._at_hand.remember(oid, tables.location(number, slot))


def _slice(view: memoryview, members: Sequence[Member], found: dict[bytes, bytes]) -> bool:
    """Copy the members out of a raw frame, checked; False if the frame must be decoded."""
    pieces = frames.raw_objects(view, [slot for slot, _ in members])
    for (_, oid), data in zip(members, pieces or (), strict=pieces is not None):
        found[oid] = checked(data, oid)
    return pieces is not None
