"""Which stored objects are needed: one bit each, whatever the size of the vault.

A *census* numbers the objects of all frames that there are: frame after frame, place after place.
It takes 20 bytes a frame and one bit an object, so ten million blocks fit in a few megabytes.
Frames that are stored after the census are beyond it: nothing is said of them, and nothing of them
is ever collected by the run that took the census.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from blockvault.store import frames, tables

if TYPE_CHECKING:
    from blockvault.vault import Vault

_HEADS_A_READ = 2048


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

    def __init__(self, vault: Vault) -> None:
        self._numbers, self._lengths, self._starts = array("Q"), array("I"), array("Q", [0])
        while heads := self._read(vault):
            for number, head, length in heads:
                self._numbers.append(number)
                self._lengths.append(length)
                self._starts.append(self._starts[-1] + frames.object_count(head))
        self.objects = self._starts[-1]
        self.stored = sum(self._lengths)
        self.marked = 0
        self._bits = bytearray(-(-self.objects // 8))
        self._first = self._last = self._base = 0

    def _read(self, vault: Vault) -> list[tuple[int, bytes, int]]:
        start = self._numbers[-1] + 1 if self._numbers else 0
        with vault.read() as reader:
            return reader.frame_heads(start, _HEADS_A_READ)

    def mark(self, place: int) -> bool | None:
        """Mark the object at a place; False if it was marked already, None beyond the census."""
        number = place >> tables.SLOT_BITS
        if number != self._last:
            at = bisect_right(self._numbers, number) - 1
            if at < 0 or self._numbers[at] != number:
                return None
            self._last, self._base = number, self._starts[at]
        bit = self._base + (place & 0xFFFF)
        mask = 1 << (bit & 7)
        if self._bits[bit >> 3] & mask:
            return False
        self._bits[bit >> 3] |= mask
        self.marked += 1
        return True

    def frames(self) -> Iterator[Counted]:
        """All frames of the census, ascending."""
        for at, number in enumerate(self._numbers):
            start, stop = self._starts[at], self._starts[at + 1]
            yield Counted(number, self._lengths[at], stop - start, self._slice(start, stop))

    def frame(self, number: int) -> Counted | None:
        """One frame of the census, as it is marked now."""
        at = bisect_right(self._numbers, number) - 1
        if at < 0 or self._numbers[at] != number:
            return None
        start, stop = self._starts[at], self._starts[at + 1]
        return Counted(number, self._lengths[at], stop - start, self._slice(start, stop))

    def _slice(self, start: int, stop: int) -> int:
        bits = int.from_bytes(self._bits[start >> 3 : -(-stop // 8)], "little") >> (start & 7)
        return bits & ((1 << (stop - start)) - 1)
