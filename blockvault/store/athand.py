"""What a reader can take without a look into the index: objects whose place it knows, decoded.

A random read of a block costs an index look-up and the decoding of its frame, most of whose other
blocks are asked for later, if they still belong to a disk at all: of a frame that a guest wrote
long ago, few may.  So those who read trees tell which blocks these name (``expect``).  When a small
read has decoded a frame, all of it goes into the file of decoded objects; but if every tree that is
read has told all, and little of the frame is expected, then only that does, and its places are
remembered.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path
from weakref import ref

from blockvault.ids import object_id
from blockvault.store import tables
from blockvault.store.caches import DecodedFrame, Expected, FrameCache, PlaceCache
from blockvault.store.decoded import DecodedFile
from blockvault.store.runs import Pieces

KNOWN_PLACES = 1 << 20
"""Objects whose place a reader knows at most: 8 MiB, and all of a disk of 4 GiB."""

EXPECTED = 1 << 22
"""Flags of what is expected: 4 MiB; of a disk of 4 GiB a fifth of what is not expected seems so."""

SAMPLED = 8
"""Of so many objects of a frame one is hashed to see how many of all are expected."""


class Telling:
    """Which parts of a tree its reader has told of, out of ``total``; None: it never tells all."""

    __slots__ = ("__weakref__", "heard", "told", "total")

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.told: set[int] = set()
        self.heard = False

    @property
    def done(self) -> bool:
        return len(self.told) == self.total

    def untold(self, count: int) -> list[int]:
        """The first parts, at most ``count``, that are still to be told."""
        parts = (part for part in range(self.total or 0) if part not in self.told)
        return list(islice(parts, count))


class AtHand:
    """Objects by place, out of decoded frames in memory and in a file; several threads use it."""

    def __init__(self, decoded: FrameCache) -> None:
        self._decoded = decoded
        self._places = PlaceCache(KNOWN_PLACES)
        self._expected = Expected(EXPECTED)
        self._tellings: tuple[ref[Telling], ...] = ()
        self._guard = threading.Lock()
        self._file: DecodedFile | None = None

    def keep_decoded(self, directory: Path, limit: int) -> None:
        """Keep up to ``limit`` bytes of what small reads decode in a file without a name.

        For whoever reads the same volumes for long.  A disk that takes none changes nothing.
        """
        with contextlib.suppress(OSError):
            self._file = DecodedFile(directory, limit)

    @property
    def keeps(self) -> bool:
        """Whether small reads decode frames for later ones: raw ones too, since to cut each block
        out of the map costs some page faults, three times what the file takes.
        """
        return self._file is not None

    def listen(self, telling: Telling) -> bool:
        """Whether it is of use to tell of a tree; until that has told all, nothing is dropped."""
        if self.keeps and not telling.heard:
            with self._guard:
                telling.heard = True
                alive = (other for other in self._tellings if other() is not None)
                self._tellings = (*alive, ref(telling))
        return self.keeps

    def _alive(self) -> list[Telling]:
        """Those whose trees are still read."""
        return [telling for each in self._tellings if (telling := each()) is not None]

    def expect(self, ids: Iterable[bytes]) -> None:
        """Objects that may be asked for by themselves: ids, or whole leaves of them."""
        if self.keeps and not self._expected.add(b"".join(ids)):
            for telling in self._alive():
                telling.told.clear()

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

    def take_leaf(self, leaf: bytes) -> Pieces | None:
        """All blocks of a leaf, proved, if they are in the file; ``leaf`` is its id."""
        kept = None if self._file is None else self._file.get_leaf(leaf)
        return [kept[0]] if kept is not None and object_id(kept[0]) == kept[1] else None

    def keep_leaf(self, leaf: bytes, pieces: Pieces, digest: bytes) -> None:
        """Keep the blocks of a leaf, which a long read took, in the file."""
        if self._file is not None and self._file.wants_leaf(sum(map(len, pieces))):
            self._file.put_leaf(leaf, pieces, digest)

    def keep(self, number: int, frame: DecodedFrame, asked: Collection[int]) -> None:
        """Keep objects of a decoded frame in the file: those at ``asked``, and what may follow."""
        if self._file is None or not self._file.wants(frame.objects):
            return
        kept: Collection[int] = range(len(frame.ids))
        if self._is_old(frame):
            kept = [slot for slot in kept if slot in asked or frame.id_of(slot) in self._expected]
            for slot in kept:
                self._places.put(frame.id_of(slot), tables.location(number, slot))
        self._file.put(number, frame.objects, kept)

    def _is_old(self, frame: DecodedFrame) -> bool:
        """Whether less than half of a frame is expected, and all that may be expected is known.

        To hash all of each frame was tried: a disk as imported, of which everything is expected,
        gave half as many reads in its first seconds.
        """
        tellings = self._alive()
        if not tellings or not all(telling.done for telling in tellings):
            return False
        sample = range(0, len(frame.ids), SAMPLED)
        return 2 * sum(frame.id_of(slot) in self._expected for slot in sample) < len(sample)

    def close(self) -> None:
        """Forget everything."""
        self._places = PlaceCache(KNOWN_PLACES)
        self._expected = Expected(EXPECTED)
        if self._file is not None:
            self._file.close()
