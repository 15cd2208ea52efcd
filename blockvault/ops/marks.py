"""Which stored objects are needed: one bit each, whatever the size of the vault.

A *census* numbers the objects of all frames that there are: frame after frame, place after place.
It takes 20 bytes a frame and one bit an object, so ten million blocks fit in a few megabytes.
Frames that are stored after the census are beyond it: nothing is said of them, and nothing of them
is ever collected by the run that took the census.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from blockvault.store import frames, tables

if TYPE_CHECKING:
    from blockvault.vault import Vault


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
        self._bits = bytearray(-(-self.objects // 8))
        self._first = self._last = self._base = 0

    def _read(self, vault: Vault) -> list[tuple[int, bytes, int]]:
        start = self._numbers[-1] + 1 if self._numbers else 0
        with vault.read() as reader:
            return reader.frame_heads(start)

    def parts(self) -> tuple[array[int], array[int], bytes]:
        """The census and the marks: numbers of frames, where the bits of each begin, the bits."""
        return self._numbers, self._starts, bytes(self._bits)

    def take_over(self, numbers: array[int], starts: array[int], bits: bytes) -> None:
        """Mark what an earlier census has marked, of the frames that are still there."""
        for at, number in enumerate(numbers):
            self._mark(number, _slice(bits, starts[at], starts[at + 1]))

    def _add(self, start: int, bits: int) -> None:
        first, shifted = start >> 3, bits << (start & 7)
        size = -(-shifted.bit_length() // 8)
        there = int.from_bytes(self._bits[first : first + size], "little")
        self._bits[first : first + size] = (there | shifted).to_bytes(size, "little")

    def has(self, place: int) -> bool | None:
        """Whether the object at a place is marked; None beyond the census."""
        bit = self._bit(place)
        return None if bit is None else bool(self._bits[bit >> 3] >> (bit & 7) & 1)

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

    def _bit(self, place: int) -> int | None:
        number = place >> tables.SLOT_BITS
        if number != self._last:
            at = self._at(number)
            if at is None:
                return None
            self._last, self._base = number, self._starts[at]
        return self._base + (place & 0xFFFF)

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

    def _slice(self, start: int, stop: int) -> int:
        return _slice(self._bits, start, stop)


def _slice(bits: bytes | bytearray, start: int, stop: int) -> int:
    found = int.from_bytes(bits[start >> 3 : -(-stop // 8)], "little") >> (start & 7)
    return found & ((1 << (stop - start)) - 1)
