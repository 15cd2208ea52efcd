"""Reading the past: any position as a device.

``StateDevice`` is the tree and the overlay of one volume, read-only; the head of a branch builds on
it.  It is safe to use from several threads: it holds no transaction, only an immutable root.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING

from blockvault.device import Extent
from blockvault.errors import BadRequest, IOFailed
from blockvault.ids import ZERO_ID
from blockvault.model import extents, tree
from blockvault.model.extents import Run
from blockvault.model.overlay import Overlay
from blockvault.ops import states
from blockvault.ops.trails import Trails
from blockvault.ops.treereader import TreeReader
from blockvault.pins import Pin
from blockvault.store.runs import Leaf, Pieces, Trail

if TYPE_CHECKING:
    from blockvault.model.snapshot import Volume
    from blockvault.ops.positions import Position
    from blockvault.store.objects import ObjectReader
    from blockvault.vault import Vault

_LONG = 128 << 10
"""Bytes from which on a read is of whole leaves, which are proved by one hash each."""
_SOME = 32 << 10
"""Bytes from which on it is so for reads that go on where another one ended."""


class StateDevice:
    """One volume of one state, read-only; see ``blockvault.device.Device``."""

    read_only = True

    def __init__(
        self,
        objects: ObjectReader,
        name: str,
        size: int,
        root: bytes,
        overlay: Overlay,
        block_size: int,
    ) -> None:
        self.name = name
        self.size = size
        self.block_size = block_size
        self.objects = objects
        self.tree = TreeReader(objects, tree.blocks_in(size, block_size), root)
        self.overlay = overlay
        self._zero = bytes(block_size)
        self.pin: Pin | None = None
        self._trails = Trails()
        objects.expect(overlay.blocks.values())

    def read(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes at ``offset``; the range must lie within the device."""
        first, skip = divmod(offset, self.block_size)
        self.check(offset, length)
        if not skip and length == self.block_size:
            return self.block(first)
        if not length:
            return b""
        return b"".join(self.pieces(offset, length))

    def pieces(self, offset: int, length: int) -> Pieces:
        """``read`` without a copy: buffers that make up the range one after another."""
        self.check(offset, length)
        size = self.block_size
        first, stop = offset // size, -(-(offset + length) // size)
        if length >= _LONG or self._goes_on(offset, length):
            low, high, trail = self._whole_leaves(first, stop)
            start, end = low * tree.FANOUT, high * tree.FANOUT
            if start < end and not self.held(start, end):
                before = self.blocks(first, start) if first < start else []
                behind = self.blocks(end, stop) if end < stop else []
                found = chain(before, self._leaves(low, high, trail), behind)
                return part(found, offset - min(first, start) * size, length)
        elif length >= _SOME:
            self._trails.ended(stop // tree.FANOUT)
        return part(self.blocks(first, stop), offset % size, length)

    def _goes_on(self, offset: int, length: int) -> bool:
        """Whether a read, not a small one, begins in the leaf in which another one ended."""
        return length >= _SOME and offset // self.block_size // tree.FANOUT in self._trails

    def _whole_leaves(self, first: int, stop: int) -> tuple[int, int, Trail]:
        """The leaves that a long read takes whole, and who reads: ``low``, ``high``, trail.

        Those that lie within; and of one who reads on where another read ended, those around the
        ends too, for the next read will want the rest of them.
        """
        low, high = first // tree.FANOUT, -(-stop // tree.FANOUT)
        trail = self._trails.take(low)
        if trail is None:
            trail, low, high = Trail(), -(-first // tree.FANOUT), stop // tree.FANOUT
        self._trails.ended(stop // tree.FANOUT, trail)
        return low, high, trail

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes | Pieces]:
        """``read`` for several ranges: blocks are fetched together, long ranges come in pieces."""
        size = self.block_size
        for offset, length in ranges:
            self.check(offset, length)
        if all(length == size and not offset % size for offset, length in ranges):
            return self.scattered([offset // size for offset, _ in ranges])
        alone = [self._is_alone(offset, length) for offset, length in ranges]
        others = [each for each, by_itself in zip(ranges, alone, strict=True) if not by_itself]
        found = iter(self._read_together(others))
        return [
            self._read_alone(*each) if by_itself else next(found)
            for each, by_itself in zip(ranges, alone, strict=True)
        ]

    def _is_alone(self, offset: int, length: int) -> bool:
        """Whether a read is best done by itself."""
        unaligned = offset % self.block_size or length % self.block_size
        return bool(unaligned) or length >= _LONG or self._goes_on(offset, length)

    def _read_alone(self, offset: int, length: int) -> bytes | Pieces:
        return self.read(offset, length) if length < _SOME else self.pieces(offset, length)

    def _read_together(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Ranges of whole blocks."""
        size = self.block_size
        numbers: list[int] = []
        for offset, length in ranges:
            stop = (offset + length) // size
            numbers += range(offset // size, stop)
            if length >= _SOME:
                self._trails.ended(stop // tree.FANOUT)
        blocks = iter(self.scattered(numbers))
        return [b"".join(islice(blocks, length // size)) for _, length in ranges]

    def scattered(self, numbers: Sequence[int]) -> list[bytes]:
        """Whole blocks in any order, fetched together."""
        self.tree.tell()
        ids = [self.overlay.get(block) or self.tree.block_id(block) for block in numbers]
        return self.fetch(ids)

    def block(self, number: int) -> bytes:
        """One whole block; the last one of a device is padded with zeros."""
        self.tree.tell()
        oid = self.overlay.get(number) or self.tree.block_id(number)
        return self._zero if oid == ZERO_ID else self.objects.get(oid)

    def blocks(self, first: int, stop: int) -> list[bytes]:
        """Whole blocks, fetched together."""
        return self.fetch(self.ids(first, stop))

    def held(self, first: int, stop: int) -> bool:
        """Whether any of these blocks is not stored yet, and so has no id."""
        return False

    def _leaves(self, low: int, high: int, trail: Trail) -> Iterable[bytes | memoryview]:
        """The blocks of the leaves ``low`` to ``high``, as pieces in order."""
        leaves = _leaves_of(self.ids(low * tree.FANOUT, high * tree.FANOUT))
        found = self.objects.get_leaves(low, leaves, self.block_size, trail)
        return chain.from_iterable(found)

    def leaf_runs(self, ids: Sequence[bytes]) -> list[tuple[Leaf, Pieces | None]]:
        """Whole leaves, each with its blocks if its run is known; ``ids`` are all of theirs."""
        leaves = _leaves_of(ids)
        return [*zip(leaves, self.objects.get_runs(leaves, self.block_size), strict=True)]

    def fetch(self, ids: Sequence[bytes]) -> list[bytes]:
        """The blocks of these ids, zeros for ``ZERO_ID``."""
        found = self.objects.get_many([oid for oid in ids if oid != ZERO_ID])
        return [found[oid] if oid != ZERO_ID else self._zero for oid in ids]

    def ids(self, first: int, stop: int) -> list[bytes]:
        """Block ids of a range, ZERO_ID for zeros."""
        if not self.overlay.touches(first, stop):
            return self.tree.block_ids(first, stop)
        upper = self.overlay.lookup(first, stop)
        if None not in upper:
            return upper  # type: ignore[return-value]
        below = self.tree.block_ids(first, stop)
        return [above or under for above, under in zip(upper, below, strict=True)]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Data and zero runs of the range, merged and in order, as the guest reads them."""
        self.check(offset, length)
        if not length:
            return
        size = self.block_size
        first, stop = offset // size, -(-(offset + length) // size)
        # The upper layers first: a checkpoint beside us empties the overlay after it set the tree.
        upper = self.upper_runs(first, stop)
        base = self.tree
        for run in extents.of_state(self.objects, base.root, base.height, upper, first, stop):
            start, end = max(offset, run.start * size), min(offset + length, run.stop * size)
            yield Extent(start, end - start, run.zero)

    def leaves_with_data(self, first: int, stop: int) -> Iterator[int]:
        """Numbers of the leaves of ``[first, stop)`` in which there may be data, in order."""
        base = self.tree
        below = tree.leaf_ids(base.objects, base.root, base.height, first, stop)
        above = (
            range(run.start // tree.FANOUT, -(-run.stop // tree.FANOUT))
            for run in self.upper_runs(first, stop)
            if not run.zero
        )
        both = heapq.merge((block // tree.FANOUT for block, _ in below), chain.from_iterable(above))
        return (leaf for leaf, _ in groupby(both))

    def upper_runs(self, first: int, stop: int) -> Iterable[Run]:
        """What lies over the tree in ``[first, stop)``: sorted, disjoint runs."""
        return self.overlay.runs(first, stop)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        raise self._refusal()

    def zero(self, offset: int, length: int) -> None:
        raise self._refusal()

    def trim(self, offset: int, length: int) -> None:
        raise self._refusal()

    def flush(self) -> None:
        """Nothing can be pending."""

    def check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise BadRequest(
                f"{length} bytes at {offset} reach beyond the {self.size} of '{self.name}'",
                kind="out-of-range",
            )

    def _refusal(self) -> BadRequest:
        return BadRequest(f"volume '{self.name}' is open read-only", kind="read-only")


def part(pieces: Iterable[bytes | memoryview], start: int, length: int) -> Pieces:
    """The bytes ``[start, start + length)`` of what some pieces make up, as pieces."""
    found: Pieces = []
    for piece in pieces:
        if start < len(piece) and length:
            whole = not start and length >= len(piece)
            taken = piece if whole else memoryview(piece)[start : start + length]
            found.append(taken)
            length -= len(taken)
        start = max(0, start - len(piece))
    return found


def open_device(vault: Vault, position: Position, volume: str | None) -> StateDevice:
    """The named volume, or the only one, at a position; what it reads stays as long as it lives."""
    chosen = position.volume(volume)
    pin = None
    with vault.guard(reading=True):
        overlay = states.overlays(vault, position).get(chosen.name, Overlay())
        # A disk that takes nothing must still be read.  Without a pin a state that is pruned and
        # collected meanwhile ends in a clear error, never in wrong bytes.
        with suppress(IOFailed):
            pin = _pin(vault, [chosen], overlay.blocks.values())
        with vault.read() as reader:
            states.check_kept(reader, position)
    return of_volume(vault, chosen, overlay, pin)


def of_volume(
    vault: Vault, volume: Volume, overlay: Overlay | None = None, pin: Pin | None = None
) -> StateDevice:
    """A volume or attachment as a device; its state is the caller's to keep, or ``pin`` does."""
    device = StateDevice(
        vault.objects,
        volume.name,
        volume.size,
        volume.root,
        overlay or Overlay(),
        vault.options.block_size,
    )
    device.pin = pin
    return device


def pin_position(vault: Vault, position: Position) -> Pin:
    """Keep all volumes and attachments of a state until the pin is released or forgotten."""
    with vault.guard():
        overlays = states.overlays(vault, position).values()
        ids = [oid for overlay in overlays for oid in overlay.blocks.values()]
        pin = _pin(vault, [*position.volumes, *position.attachments], ids)
        with vault.read() as reader:
            states.check_kept(reader, position)
    return pin


def try_pin(vault: Vault, position: Position) -> Pin | None:
    """The same, unless the disk takes no pin: what is on it can be read all the same."""
    with suppress(IOFailed):
        return pin_position(vault, position)
    return None


def _pin(vault: Vault, volumes: Iterable[Volume], ids: Iterable[bytes]) -> Pin:
    size = vault.options.block_size
    trees = [(root, tree.depth(tree.blocks_in(length, size))) for _, length, root in volumes]
    return Pin(vault.path, trees, [oid for oid in ids if oid != ZERO_ID])


def _leaves_of(ids: Sequence[bytes]) -> list[Leaf]:
    return [ids[at : at + tree.FANOUT] for at in range(0, len(ids), tree.FANOUT)]
