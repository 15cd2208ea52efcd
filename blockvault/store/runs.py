"""Leaves' blocks as runs of bytes, each proved by one hash instead of thirty-two.

Neighbouring blocks were mostly new together, so they lie one behind the other in a frame: a run can
be cut out whole, and the table ``runs`` has the hash of what the import saw there.  Where a run
starts is asked of the index, unless it may begin where the last one ended; that it goes on without
a break, and then in the next frame, is guessed, and the hash tells whether that was right.  A wrong
guess costs a look-up for each block of the leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from blake3 import blake3

from blockvault.ids import ZERO_ID, object_id
from blockvault.store import tables
from blockvault.store.frames import Objects
from blockvault.store.types import Reader

Leaf = Sequence[bytes]
"""The ids of a leaf's blocks."""
Pieces = list[bytes | memoryview]
"""A leaf's bytes, to be joined; copies would cost as much as the hash that proves them."""
FrameOf = Callable[[int], Objects | None]


class Run(NamedTuple):
    """All blocks of a leaf, proved."""

    pieces: Pieces
    digest: bytes
    """Their hash as one."""

    @property
    def decoded(self) -> bool:
        """Whether any of it had to be decoded; what lies in the map raw was copied."""
        return any(isinstance(piece, memoryview) for piece in self.pieces)


class Trail:
    """Where somebody who reads leaves in order is: who reads on behind need not ask the index.

    Places are guesses, and 0 is none.
    """

    __slots__ = ("anchor", "leaf", "place")

    def __init__(self) -> None:
        self.leaf = 0
        """The number of the leaf that comes next."""
        self.place = 0
        """Where its first block is if it lies behind the last leaf that was a run."""
        self.anchor = 0
        """Where its first block is if others lie between them (``scattered``)."""


def key_of(leaf: Leaf) -> bytes:
    """The id of a leaf, by which the hash of its run is known."""
    return object_id(b"".join(leaf))


def zeros(leaf: Leaf, size: int) -> Pieces | None:
    """The bytes of a leaf that has nothing but zeros; None for any other."""
    if leaf[0] == ZERO_ID == leaf[-1] and leaf.count(ZERO_ID) == len(leaf):
        return [bytes(len(leaf) * size)]
    return None


def proved(pieces: Iterable[bytes | memoryview], digest: bytes) -> bool:
    """Whether the pieces, one behind the other, have this hash."""
    hasher = blake3()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest() == digest


def read(
    reader: Reader,
    leaves: Sequence[Leaf],
    keys: Sequence[bytes],
    frame: FrameOf,
    size: int,
    trail: Trail,
) -> list[Run | None]:
    """The bytes of each leaf, of which ``keys`` are the ids, proved; ``size`` is that of a block.

    None where the hash of the run is not known or does not fit: such a leaf is to be read, and
    proved, block by block.  The first leaf may begin at ``trail``, which then is where they end.
    """
    digests = [reader.get(tables.RUNS, key) for key in keys]
    cuts = [_Cut(*each, frame, size) for each in zip(leaves, digests, strict=True)]
    known = [cut for cut in cuts if cut.digest is not None]
    if trail.place:
        _follow(known, trail.place)
    _guess(known, reader)
    if known:
        trail.place = known[-1].place
    if wrong := [cut for cut in known if not cut.prove()]:
        _look_up(wrong, reader)
    return [cut.run for cut in cuts]


class _Cut:
    """A leaf on its way out of frames: the pieces that are there, and where the next may be."""

    __slots__ = ("_frame", "_size", "at", "digest", "leaf", "pieces", "place", "run")

    def __init__(self, leaf: Leaf, digest: bytes | None, frame: FrameOf, size: int) -> None:
        self.leaf = leaf
        self.digest = digest
        self.run: Run | None = None
        self._frame = frame
        self._size = size
        self.begin()

    def begin(self) -> None:
        """Forget what is there."""
        self.pieces: Pieces = []
        self.at = self.place = 0

    @property
    def whole(self) -> bool:
        return self.at == len(self.leaf)

    @property
    def next(self) -> bytes:
        """The id of the first block that is not there."""
        return self.leaf[self.at]

    def prove(self) -> bool:
        """Make a run of the pieces if they are all, and what they should be."""
        if self.whole and self.digest is not None and proved(self.pieces, self.digest):
            self.run = Run(self.pieces, self.digest)
        return self.run is not None

    def skip_zeros(self) -> bool:
        """Pass the zeros that come next; whether anything comes behind them."""
        if not self.whole and self.next == ZERO_ID:
            behind = (at for at in range(self.at, len(self.leaf)) if self.leaf[at] != ZERO_ID)
            stop = next(behind, len(self.leaf))
            self.pieces.append(bytes((stop - self.at) * self._size))
            self.at = stop
        return not self.whole

    def take(self, count: int) -> bool:
        """Take up to ``count`` blocks from ``place`` to the end of the frame; whether it is one."""
        number, slot = tables.split_location(self.place)
        objects = self._frame(number)
        if objects is None or objects.uniform != self._size or slot >= objects.count:
            return False
        payload, start = objects.payload, slot * self._size
        piece = memoryview(payload)[start : start + count * self._size]
        # A raw frame's payload lies in the map, and must not outlive the transaction.
        self.pieces.append(piece if isinstance(payload, bytes) else bytes(piece))
        taken = len(piece) // self._size
        self.at += taken
        ended = slot + taken == objects.count
        self.place = tables.location(number + 1, 0) if ended else self.place + taken
        return True

    def follow(self) -> None:
        """Take what lies behind ``place``, as long as the first block of each piece is right."""
        while self.skip_zeros():
            had, place = self.at, self.place
            if not self.take(self.before_zeros()):
                return
            if object_id(self.pieces[-1][: self._size]) != self.leaf[had]:
                self.pieces.pop()
                self.at, self.place = had, place
                return

    def before_zeros(self) -> int:
        """How many blocks come before the next zeros."""
        zeros = ZERO_ID in self.leaf[self.at :]
        return (self.leaf.index(ZERO_ID, self.at) if zeros else len(self.leaf)) - self.at


def _follow(cuts: Iterable[_Cut], place: int) -> None:
    """Leaves one behind the other, as long as each goes on where the one before ended."""
    for cut in cuts:
        cut.place = place
        cut.follow()
        if not cut.whole:
            return
        place = cut.place


def _guess(cuts: Iterable[_Cut], reader: Reader) -> None:
    """Each leaf as if its runs lay in frames as they lie in it, as far as they can.

    All leaves go on together, so that the index is asked once for the next place of each.
    """
    going = [cut for cut in cuts if cut.skip_zeros()]
    while going:
        places = _located(reader, (cut.next for cut in going))
        going = [cut for cut in going if _goes_on(cut, places) and not cut.whole]


def _goes_on(cut: _Cut, places: Mapping[bytes, int | None]) -> bool:
    """Take the next run from where the index says that it is; False if nothing is there."""
    place = places[cut.next]
    if place is None:
        return False
    cut.place = place
    if not cut.take(cut.before_zeros()):
        return False
    cut.follow()
    return True


def _look_up(cuts: Sequence[_Cut], reader: Reader) -> None:
    """Each leaf anew, from where the index says that its blocks are."""
    places = _located(reader, {oid for cut in cuts for oid in cut.leaf})
    for cut in cuts:
        cut.begin()
        while cut.skip_zeros():
            place = places[cut.next]
            if place is None:
                break
            cut.place = place
            if not cut.take(_neighbours(cut.leaf, cut.at, places)):
                break
        cut.prove()


def _neighbours(leaf: Leaf, at: int, places: Mapping[bytes, int | None]) -> int:
    """How many blocks from ``at`` on lie one behind the other in their frame."""
    place, stop = places[leaf[at]], at + 1
    while place is not None and stop < len(leaf) and places.get(leaf[stop]) == place + stop - at:
        stop += 1
    return stop - at


def _located(reader: Reader, ids: Iterable[bytes]) -> Mapping[bytes, int | None]:
    wanted = [oid for oid in ids if oid != ZERO_ID]
    return dict(zip(wanted, reader.locate(wanted), strict=True))
