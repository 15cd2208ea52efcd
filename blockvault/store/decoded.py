"""Decoded objects in a file without a name (``ring``): what was decoded once is only read again.

A random read of 4 KiB out of a frame of 256 KiB costs sixty times what it is for.  What was decoded
for such a read is written here, as far as it may be asked for.  A long read takes whole leaves,
which may lie scattered over as many frames as they have blocks; here such a leaf lies in one piece.
What is read from the file is proved like everything else: the caller compares the hash, and takes a
mismatch for something that is not here.

To wait for a frame's second decoding was tried: who reads everything once gains a twentieth, and
who reads a disk at random for some seconds gets half as many reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from blockvault.store.frames import Objects
from blockvault.store.ring import Ring

LARGEST = 256 << 10
"""Longer frames are packed ones: what lies in those is needed at many places, and they are kept in
memory."""
WORTH_IT = 32 << 10
"""Frames that are shorter are decoded as fast as they are read."""
ADMITTED = 4
"""Of so many frames one is kept when the file is full."""
LEAVES_ADMITTED = 16
"""Of so many leaves: who reads a disk from end to end would write a quarter of it otherwise."""


class _Slots(NamedTuple):
    """Objects of one frame that lie in the file one after another, by place in the frame."""

    length: int
    """That of each object."""
    bits: int
    """One bit for each object of the frame: whether it is here."""


class DecodedFile:
    """Up to ``limit`` bytes of equal objects; safe to use from several threads."""

    def __init__(self, directory: Path, limit: int) -> None:
        """``OSError`` if the disk takes no file."""
        self._ring = Ring(directory, limit)
        self.close = self._ring.close

    # -- objects of a frame, by its number --------------------------------------------------------

    def wants(self, objects: Objects) -> bool:
        """Whether a decoded frame is of the kind that is worth it, and may come in."""
        if not objects.uniform or not WORTH_IT <= len(objects.payload) <= LARGEST:
            return False
        return self._ring.admits(LARGEST, ADMITTED)

    def put(self, number: int, objects: Objects, slots: Iterable[int]) -> None:
        """Keep some objects of a frame, beside those of it that are here already."""
        held = self._ring.find(number)
        known = held.about.bits if held else 0
        bits = known
        for slot in slots:
            bits |= 1 << slot
        if bits != known:
            self._ring.put(number, _pieces(objects, bits), _Slots(objects.uniform, bits))

    def get(self, number: int, slot: int) -> bytes | None:
        """One object of a frame, not proved yet; None if it is not here."""
        held = self._ring.find(number)
        if held is None or not held.about.bits >> slot & 1:
            return None
        length, bits = held.about
        before = (bits & ((1 << slot) - 1)).bit_count()
        return self._ring.read(held, before * length, length)

    # -- all blocks of a leaf, by its id ----------------------------------------------------------

    def wants_leaf(self, size: int) -> bool:
        """Whether a leaf whose blocks take so many bytes may come in."""
        return self._ring.admits(size, LEAVES_ADMITTED)

    def put_leaf(self, leaf: bytes, pieces: Sequence[bytes | memoryview], digest: bytes) -> None:
        """Keep the blocks of a leaf; ``digest`` is their hash as one run."""
        if self._ring.find(leaf) is None:
            self._ring.put(leaf, pieces, digest)

    def get_leaf(self, leaf: bytes) -> tuple[bytes, bytes] | None:
        """The blocks of a leaf, not proved yet, and the hash to prove them with."""
        held = self._ring.find(leaf)
        data = None if held is None else self._ring.read(held, 0, held.size)
        return None if held is None or data is None else (data, held.about)


def _pieces(objects: Objects, bits: int) -> list[memoryview]:
    payload, length = memoryview(objects.payload), objects.uniform
    if bits.bit_count() * length == len(payload):
        return [payload]
    return [
        payload[at : at + length]
        for slot, at in enumerate(range(0, len(payload), length))
        if bits >> slot & 1
    ]
