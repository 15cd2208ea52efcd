"""A leaf's blocks as one run of bytes, proved by one hash instead of thirty-two.

Neighbouring blocks were mostly new together, so they lie one behind the other in a frame: a run can
be cut out whole, and the table ``runs`` has the hash of what the import saw there.  Where the run
starts is asked of the index; that it goes on without a break is guessed, and the hash tells whether
that was right.  A wrong guess costs a look-up for each block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blockvault.ids import ZERO_ID
from blockvault.store import tables
from blockvault.store.frames import Objects

FrameOf = Callable[[int], Objects | None]


def guessed(
    ids: Sequence[bytes], locate: Callable[[bytes], int | None], frame: FrameOf, size: int
) -> bytes | None:
    """The blocks of ``ids`` if each run of them lies in a frame as it lies in the leaf."""
    pieces: list[bytes | memoryview] = []
    at = 0
    while at < len(ids):
        stop = _run_end(ids, at)
        if ids[at] == ZERO_ID:
            pieces.append(bytes((stop - at) * size))
            at = stop
            continue
        taken = _cut(locate(ids[at]), stop - at, frame, size)
        if taken is None:
            return None
        pieces.append(taken)
        at += len(taken) // size
    return b"".join(pieces)


def looked_up(places: Sequence[int | None], frame: FrameOf, size: int) -> bytes | None:
    """The blocks at these places, in order; ``None`` among them stands for zeros."""
    pieces: list[bytes | memoryview] = []
    for place in places:
        piece = bytes(size) if place is None else _cut(place, 1, frame, size)
        if piece is None:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _run_end(ids: Sequence[bytes], at: int) -> int:
    """Where the blocks from ``at`` on change between zeros and data."""
    zero = ids[at] == ZERO_ID
    while at < len(ids) and (ids[at] == ZERO_ID) == zero:
        at += 1
    return at


def _cut(place: int | None, count: int, frame: FrameOf, size: int) -> bytes | memoryview | None:
    """Up to ``count`` blocks from ``place`` to the end of its frame."""
    if place is None:
        return None
    number, slot = tables.split_location(place)
    objects = frame(number)
    if objects is None or objects.uniform != size or slot >= objects.count:
        return None
    return objects.payload[slot * size : (slot + count) * size]
