"""Where objects lie: what the index says of many at once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from blockvault.errors import Damaged
from blockvault.ids import short
from blockvault.store import tables
from blockvault.store.types import Reader, Store

Member = tuple[int, bytes]
"""An object's place in a frame, and its id."""

_AT_ONCE = 1 << 16
"""Objects that are looked up in one transaction."""


def located(reader: Reader, ids: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Place and id of each object, in order; ``Damaged`` if one is missing."""
    placed = []
    for oid, place in zip(ids, reader.locate(ids), strict=True):
        if place is None:
            raise missing(oid)
        placed.append((place, oid))
    return placed


def missing(oid: bytes) -> Damaged:
    """The error for an object that should be in the vault and is not."""
    return Damaged(f"object {short(oid)} is missing from the vault", kind="object-missing")


def grouped(placed: Sequence[tuple[int, bytes]]) -> dict[int, list[Member]]:
    """Objects by the number of their frame, in the order of the frames."""
    groups: dict[int, list[Member]] = {}
    for place, oid in placed:
        groups.setdefault(place >> tables.SLOT_BITS, []).append((place & 0xFFFF, oid))
    return dict(sorted(groups.items()))


def places_of(store: Store, ids: Sequence[bytes]) -> array[int]:
    """The place of each object, however many they are; ``Damaged`` if one is missing.

    Objects move when frames are packed anew: then the frame that a place names is gone.
    """
    places = array("Q")
    for at in range(0, len(ids), _AT_ONCE):
        with store.read() as reader:
            places.extend([place for place, _ in located(reader, ids[at : at + _AT_ONCE])])
    return places
