"""Leaves' blocks as runs of bytes, each proved by one hash instead of thirty-two.

Neighbouring blocks were mostly new together, so they lie one behind the other in a frame: a run can
be cut out whole, and the table ``runs`` has the hash of what the import saw there.  Where a run
starts is asked of the index; that it goes on without a break is guessed, and the hash tells whether
that was right.  A wrong guess costs a look-up for each block of the leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

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


def read(reader: Reader, leaves: Sequence[Leaf], frame: FrameOf, size: int) -> list[Pieces | None]:
    """The bytes of each leaf, proved; ``size`` is that of a block.

    None where the hash of the run is not known or does not fit: such a leaf is to be read, and
    proved, block by block.
    """
    digests = [reader.get(tables.RUNS, object_id(b"".join(leaf))) for leaf in leaves]
    found: list[Pieces | None] = [None] * len(leaves)
    for collect in (_guessed, _looked_up):
        wanted = [
            at for at, digest in enumerate(digests) if digest is not None and found[at] is None
        ]
        collected = collect([leaves[at] for at in wanted], reader, frame, size)
        for at, pieces in zip(wanted, collected, strict=True):
            found[at] = _proved(pieces, digests[at])
    return found


def _proved(pieces: Pieces | None, digest: bytes | None) -> Pieces | None:
    if pieces is None:
        return None
    hasher = blake3()
    for piece in pieces:
        hasher.update(piece)
    return pieces if hasher.digest() == digest else None


def _guessed(
    leaves: Sequence[Leaf], reader: Reader, frame: FrameOf, size: int
) -> list[Pieces | None]:
    """Each leaf as if its runs lay in frames as they lie in it; None where they cannot.

    All leaves go on together, so that the index is asked once for the next place of each.
    """
    found: list[Pieces | None] = [[] for _ in leaves]
    going = {number: 0 for number, _ in enumerate(leaves)}
    while going:
        places = _located(reader, (leaves[number][at] for number, at in going.items()))
        for number, at in list(going.items()):
            leaf, pieces = leaves[number], found[number]
            piece = _piece(leaf, at, _run_end(leaf, at), places, frame, size)
            if piece is None or pieces is None:
                found[number] = None
                del going[number]
                continue
            pieces.append(piece)
            going[number] = at + len(piece) // size
            if going[number] == len(leaf):
                del going[number]
    return found


def _looked_up(
    leaves: Sequence[Leaf], reader: Reader, frame: FrameOf, size: int
) -> list[Pieces | None]:
    """Each leaf from where the index says that its blocks are."""
    places = _located(reader, {oid for leaf in leaves for oid in leaf})
    return [_from_places(leaf, places, frame, size) for leaf in leaves]


def _from_places(
    leaf: Leaf, places: Mapping[bytes, int | None], frame: FrameOf, size: int
) -> Pieces | None:
    pieces: Pieces = []
    at = 0
    while at < len(leaf):
        stop = _run_end(leaf, at) if leaf[at] == ZERO_ID else _neighbours_end(leaf, at, places)
        piece = _piece(leaf, at, stop, places, frame, size)
        if piece is None:
            return None
        pieces.append(piece)
        at = stop
    return pieces


def _located(reader: Reader, ids: Iterable[bytes]) -> Mapping[bytes, int | None]:
    wanted = [oid for oid in ids if oid != ZERO_ID]
    return dict(zip(wanted, reader.locate(wanted), strict=True))


def _piece(
    leaf: Leaf,
    at: int,
    stop: int,
    places: Mapping[bytes, int | None],
    frame: FrameOf,
    size: int,
) -> bytes | memoryview | None:
    """The blocks ``at`` to ``stop``, or as many of them as there are before the frame's end."""
    if leaf[at] == ZERO_ID:
        return bytes((stop - at) * size)
    return _cut(places[leaf[at]], stop - at, frame, size)


def _run_end(leaf: Leaf, at: int) -> int:
    """Where the blocks from ``at`` on change between zeros and data."""
    if leaf[at] != ZERO_ID:
        return leaf.index(ZERO_ID, at) if ZERO_ID in leaf[at:] else len(leaf)
    return next((end for end in range(at, len(leaf)) if leaf[end] != ZERO_ID), len(leaf))


def _neighbours_end(leaf: Leaf, at: int, places: Mapping[bytes, int | None]) -> int:
    """Where the blocks from ``at`` on cease to lie one behind the other in their frame."""
    place, stop = places[leaf[at]], at + 1
    while place is not None and stop < len(leaf) and places.get(leaf[stop]) == place + stop - at:
        stop += 1
    return stop


def _cut(place: int | None, count: int, frame: FrameOf, size: int) -> bytes | memoryview | None:
    """Up to ``count`` blocks from ``place`` to the end of its frame."""
    if place is None:
        return None
    number, slot = tables.split_location(place)
    objects = frame(number)
    if objects is None or objects.uniform != size or slot >= objects.count:
        return None
    piece = memoryview(objects.payload)[slot * size : (slot + count) * size]
    # A raw frame's payload lies in the map, and must not outlive the transaction.
    return piece if isinstance(objects.payload, bytes) else bytes(piece)
