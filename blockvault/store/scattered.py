"""Blocks that a guest has rewritten here and there: where the others lie is guessed.

A disk is imported in order, so its blocks lie in frames one behind the other.  What a guest writes
later goes elsewhere, and leaves the places of the others as they were.  So whoever reads such a
disk in order finds most blocks by counting, each proved by its hash, and looks up only those that
are not what they are taken for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from blockvault.ids import ZERO_ID
from blockvault.store import tables
from blockvault.store.caches import DecodedFrame

FrameOf = Callable[[int], DecodedFrame | None]

_SURE = 4
"""Blocks that must lie as if nothing had come between before others are looked for so."""


def counted(
    ids: Iterable[bytes | None], place: int, frame_of: FrameOf
) -> tuple[dict[bytes, bytes], list[bytes], int]:
    """Those that lie in order from ``place`` on; those that do not; the place behind the last.

    None among ``ids`` is a block that nobody wants.  Place 0 is none: if it is returned, counting
    has led nowhere.
    """
    found: dict[bytes, bytes] = {}
    others: list[bytes] = []
    number, slot = tables.split_location(place)
    frame = frame_of(number) if place else None
    for oid in ids:
        if oid == ZERO_ID:
            continue
        while frame is not None and slot >= len(frame.ids):
            number, slot = number + 1, slot - len(frame.ids)
            frame = frame_of(number)
        data = frame.proved(slot, oid) if frame is not None and oid is not None else None
        slot += 1
        if data is not None and oid is not None:
            found[oid] = data
        elif oid is not None:
            others.append(oid)
    on_track = frame is not None and (found or not others)
    return found, others, tables.location(number, slot) if on_track else 0


def place_behind(ids: Iterable[bytes | None], placed: Sequence[tuple[int, bytes]]) -> int:
    """Where the block behind ``ids`` may be, as most of those that were looked up lie; or 0."""
    places = {oid: place for place, oid in placed}
    count, starts = 0, Counter[int]()
    for oid in ids:
        if oid in places:
            starts[places[oid] - count] += 1
        count += oid != ZERO_ID
    start, often = max(starts.items(), key=lambda item: item[1], default=(0, 0))
    return start + count if often >= _SURE else 0
