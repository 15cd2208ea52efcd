"""What a reader can take without a look into the index: objects whose place it knows, decoded.

A random read of a block costs an index look-up and the decoding of its frame, most of whose other
blocks are asked for later, if they still belong to the disk at all: of a frame that a guest wrote
long ago, few may.  So a device tells which blocks the trees name that it reads (``expect``).  When
a small read has decoded a frame, its objects are hashed; of those that are expected the place is
remembered, and they go into the file of decoded objects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from blockvault.ids import object_id
from blockvault.store import tables
from blockvault.store.caches import DecodedFrame, Expected, FrameCache, PlaceCache
from blockvault.store.decoded import DecodedFile

KNOWN_PLACES = 1 << 20
"""Objects whose place a reader knows at most: 8 MiB, and all of a disk of 4 GiB."""

EXPECTED = 1 << 22
"""Flags of what is expected: 4 MiB; of a disk of 4 GiB a fifth of what is not expected seems so."""

IN_A_ROW = 8
"""Expected objects in a row from which on those around them are taken for expected too."""

SAMPLED = 8
"""Of so many objects of a frame one is hashed to see whether any of them is expected."""


class AtHand:
    """Objects by place, out of decoded frames in memory and in a file; several threads use it."""

    def __init__(self, decoded: FrameCache) -> None:
        self._decoded = decoded
        self._places = PlaceCache(KNOWN_PLACES)
        self._expected = Expected(EXPECTED)
        self._file: DecodedFile | None = None

    def keep_decoded(self, directory: Path, limit: int) -> None:
        """Keep up to ``limit`` bytes of what small reads decode in a file without a name.

        For whoever reads the same volumes for long.  A disk that takes none changes nothing.
        """
        with contextlib.suppress(OSError):
            self._file = DecodedFile(directory, limit)

    def expect(self, ids: bytes) -> None:
        """Objects that may be asked for by themselves: their ids, one after another."""
        if self._file is not None:
            self._expected.add(ids)

    def known(self, oid: bytes) -> int:
        """The place of an object, which may be old; 0, which is none, if it is not known."""
        return self._places.get(oid)

    def remember(self, oid: bytes, place: int) -> None:
        """Know an object's place from now on."""
        self._places.put(oid, place)

    def take(self, place: int, oid: bytes) -> bytes | None:
        """The object, proved, if it is at that place of a frame that is decoded; 0 is no place."""
        if not place:
            return None
        number, slot = tables.split_location(place)
        cached = self._decoded.get(number)
        if cached is not None:
            return cached.proved(slot, oid)
        data = None if self._file is None else self._file.get(number, slot)
        return data if data is not None and object_id(data) == oid else None

    def take_all(self, wanted: Mapping[int, bytes]) -> dict[bytes, bytes] | None:
        """Objects by place, proved; None if they are not all here."""
        found: dict[bytes, bytes] = {}
        for place, oid in wanted.items():
            data = self.take(place, oid)
            if data is None:
                return None
            found[oid] = data
        return found

    def keep(self, number: int, frame: DecodedFrame, asked: Collection[int]) -> None:
        """Keep objects of a decoded frame in the file: those at ``asked``, and what will follow."""
        if self._file is None or not self._file.wants(frame.objects):
            return
        kept = self._worth_keeping(frame, asked)
        for slot in kept:
            oid = frame.ids[slot]
            if oid is not None:
                self._places.put(oid, tables.location(number, slot))
        self._file.put(number, frame.objects, kept)

    def _worth_keeping(self, frame: DecodedFrame, asked: Collection[int]) -> Sequence[int]:
        """The places of those that are asked for or expected.

        All of them if none seems to be expected, since nobody knows then what belongs to a disk,
        and if the expected ones lie in a row: they are an import's, and the others will follow.
        """
        every, expected = range(len(frame.ids)), self._expected
        if not any(frame.id_of(slot) in expected for slot in every[::SAMPLED] if slot not in asked):
            return every
        found = [slot for slot in every if slot in asked or frame.id_of(slot) in expected]
        return every if found[-1] - found[0] + 1 == len(found) >= IN_A_ROW else found

    def close(self) -> None:
        """Forget everything."""
        self._places = PlaceCache(KNOWN_PLACES)
        self._expected = Expected(EXPECTED)
        if self._file is not None:
            self._file.close()
