"""Which stored objects are needed: one bit each, whatever the size of the vault.

A *census* numbers the objects of all frames that there are: frame after frame, place after place.
It takes 20 bytes a frame and one bit an object, so ten million blocks fit in a few megabytes.
Frames that are stored after the census are beyond it: nothing is said of them, and nothing of them
is ever collected by the run that took the census.

Marks are by place, and where an object lies the index says, whose rows have no check.  One that is
damaged may name the place of another object, or hide its own.  So it is kept of which object a
place was *walked*, in two bytes for each place of frames with nodes; and which needed objects are
``unfound``, so that no mark can say it.  Where those are too many to keep, whatever the index does
not find counts as needed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from typing import TYPE_CHECKING, NamedTuple

from blockvault.model import tree
from blockvault.store import frames, tables

if TYPE_CHECKING:
    from blockvault.vault import Vault

UNFOUND_AT_MOST = 1 << 20
"""Needed objects that the index lacks and that are kept, about 100 bytes of memory each."""


class Counted(NamedTuple):
    """A frame as the census has it: encoded ``length``, its objects, ``marked`` of them as bits."""

    number: int
    length: int
    objects: int
    marked: int

    @property
    def dead(self) -> int:
        """The places that are not marked, as bits."""
        return ((1 << self.objects) - 1) & ~self.marked

    @property
    def dead_bytes(self) -> int:
        """The dead objects' share of the frame, as it is stored."""
        return self.length * self.dead.bit_count() // self.objects


class Parts(NamedTuple):
    """A census and its marks, to be kept: numbers of frames, where the bits of each begin, and the
    bits; what was walked, by frame; the ids that were not found.
    """

    numbers: bytes
    starts: bytes
    bits: bytes
    walked: tuple[tuple[int, bytes], ...]
    unfound: bytes


class Marks:
    """A census of all frames, and a mark for each object that is needed."""

    def __init__(self, vault: Vault, upto: int = tables.MAX_FRAME_NUMBER) -> None:
        """Take the census of all frames up to number ``upto``."""
        self._numbers, self._lengths, self._starts = array("Q"), array("I"), array("Q", [0])
        while heads := self._read(vault):
            for number, head, length in heads:
                if number > upto:
                    break
                self._numbers.append(number)
                self._lengths.append(length)
                self._starts.append(self._starts[-1] + frames.object_count(head))
            if heads[-1][0] > upto:
                break
        self.objects = self._starts[-1]
        self.stored = sum(self._lengths)
        self.marked = 0
        self.unfound: set[bytes] = set()
        """Objects that are needed, and that the index does not find: all, or more than
        ``UNFOUND_AT_MOST`` of them."""
        self.pinned = False
        """Whether something is marked that a living process held on to: it may do so no more when
        another run takes the marks over."""
        self._walked: dict[int, array[int]] = {}
        """By frame: a part of the id of each object that was walked; 0 for the others."""
        self._bits = bytearray(-(-self.objects // 8))

    def _read(self, vault: Vault) -> list[tuple[int, bytes, int]]:
        start = self._numbers[-1] + 1 if self._numbers else 0
        with vault.read() as reader:
            return reader.frame_heads(start)

    def parts(self) -> Parts:
        """All that ``take_over`` needs."""
        walked = tuple((number, tags.tobytes()) for number, tags in self._walked.items())
        census = self._numbers.tobytes(), self._starts.tobytes()
        return Parts(*census, bytes(self._bits), walked, b"".join(self.unfound))

    def take_over(self, earlier: Parts) -> None:
        """Mark what an earlier census has marked, of the frames that are still there."""
        starts = array("Q", earlier.starts)
        for at, number in enumerate(array("Q", earlier.numbers)):
            self._mark(number, _slice(earlier.bits, starts[at], starts[at + 1]))
        for number, tags in earlier.walked:
            if self._at(number) is not None:
                self._walked[number] = array("H", tags)
        self.unfound.update(tree.split_ids(earlier.unfound))

    def _add(self, start: int, bits: int) -> None:
        first, shifted = start >> 3, bits << (start & 7)
        size = -(-shifted.bit_length() // 8)
        there = int.from_bytes(self._bits[first : first + size], "little")
        self._bits[first : first + size] = (there | shifted).to_bytes(size, "little")

    def walk(self, place: int, oid: bytes) -> bool:
        """Note that all that this object names is marked; False beyond the census."""
        number = place >> tables.SLOT_BITS
        tags = self._walked.get(number)
        if tags is None:
            at = self._at(number)
            if at is None:
                return False
            tags = array("H", bytes(2 * (self._starts[at + 1] - self._starts[at])))
            self._walked[number] = tags
        tags[place & 0xFFFF] = _tag(oid)
        return True

    def walked(self, place: int, oid: bytes) -> bool | None:
        """Whether all that this object names is marked; None beyond the census."""
        number, slot = place >> tables.SLOT_BITS, place & 0xFFFF
        tags = self._walked.get(number)
        if tags is None:
            return None if self._at(number) is None else False
        return slot < len(tags) and tags[slot] == _tag(oid)

    def mark(self, places: Iterable[int]) -> None:
        """Mark the objects at these places; nothing is said of those beyond the census."""
        found: defaultdict[int, int] = defaultdict(int)
        for place in places:
            found[place >> tables.SLOT_BITS] |= 1 << (place & 0xFFFF)
        for number, bits in found.items():
            self._mark(number, bits)

    def _mark(self, number: int, bits: int) -> None:
        """Mark objects of one frame, given as bits."""
        at = self._at(number)
        if at is None:
            return
        start, stop = self._starts[at], self._starts[at + 1]
        fresh = bits & ((1 << (stop - start)) - 1) & ~self._slice(start, stop)
        self.marked += fresh.bit_count()
        self._add(start, fresh)

    def _at(self, number: int) -> int | None:
        """Where the census has a frame."""
        at = bisect_right(self._numbers, number) - 1
        return at if at >= 0 and self._numbers[at] == number else None

    def lack(self, ids: Set[bytes]) -> None:
        """Note that these objects are needed and that the index does not find them."""
        if len(self.unfound) <= UNFOUND_AT_MOST:
            self.unfound |= ids

    def may_lack(self, oid: bytes) -> bool:
        """Whether an object may be needed that the index does not find."""
        return oid in self.unfound or len(self.unfound) > UNFOUND_AT_MOST

    def frames(self) -> Iterator[Counted]:
        """All frames of the census, ascending."""
        for at, number in enumerate(self._numbers):
            start, stop = self._starts[at], self._starts[at + 1]
            yield Counted(number, self._lengths[at], stop - start, self._slice(start, stop))

    def frame(self, number: int) -> Counted | None:
        """One frame of the census, as it is marked now."""
        at = self._at(number)
        if at is None:
            return None
        start, stop = self._starts[at], self._starts[at + 1]
        return Counted(number, self._lengths[at], stop - start, self._slice(start, stop))

    def unneeded(self, place: int) -> bool:
        """Whether the census has such a place, and it is not marked."""
        frame = self.frame(place >> tables.SLOT_BITS)
        return frame is not None and bool(frame.dead >> (place & 0xFFFF) & 1)

    def _slice(self, start: int, stop: int) -> int:
        return _slice(self._bits, start, stop)


def _tag(oid: bytes) -> int:
    return oid[0] << 8 | oid[1] or 1


def _slice(bits: bytes | bytearray, start: int, stop: int) -> int:
    found = int.from_bytes(bits[start >> 3 : -(-stop // 8)], "little") >> (start & 7)
    return found & ((1 << (stop - start)) - 1)
