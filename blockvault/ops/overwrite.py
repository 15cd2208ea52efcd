"""A file made the same as a volume of the past by writing only what differs.

It is for the memory of a machine that goes back: most of it has the wanted content already.  A leaf
of 32 blocks that is the same costs one hash over its bytes (table ``runs``), one that differs a
hash for each block, and only blocks that differ are read from the vault.  Holes of the file cost
nothing, and where the volume has zeros the file gets holes.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from blockvault.errors import BadRequest, IOFailed
from blockvault.ids import ZERO_ID, object_id
from blockvault.model import extents, tree
from blockvault.model.extents import Run
from blockvault.ops import reading
from blockvault.ops.images import RawImage
from blockvault.store import tables

if TYPE_CHECKING:
    from blockvault.model.snapshot import Volume
    from blockvault.vault import Vault

_THREADS = 2
_LEAVES = 64
"""Leaves that a thread takes at once."""

Leaf = tuple[int, bytes]
"""Its first block, and its id."""


def overwrite(vault: Vault, volume: Volume, path: Path) -> int:
    """Give the file at ``path`` the volume's content; return how many bytes were not the same.

    The file has the volume's size already, and nobody else writes to it meanwhile.  When this
    fails, some of it is the volume's and some is what it was.
    """
    try:
        with (
            open(path, "r+b", buffering=0) as file,
            mmap.mmap(file.fileno(), 0) as memory,
            ThreadPoolExecutor(_THREADS, "overwrite") as threads,
        ):
            if len(memory) != volume.size:
                raise BadRequest(f"{path} has {len(memory):,} bytes, not {volume.size:,}")
            work = _Overwriting(vault, volume, RawImage(file.fileno(), path), memory)
            return sum(threads.map(work.leaves, work.batches())) + work.clear_gaps()
    except OSError as error:
        raise IOFailed(f"{path} cannot be written: {error.strerror}") from None


class _Overwriting:
    def __init__(self, vault: Vault, volume: Volume, file: RawImage, memory: mmap.mmap) -> None:
        self._vault = vault
        self._device = reading.of_volume(vault, volume)
        self._file = file
        self._memory = memory
        self._size = vault.options.block_size
        self._zero_id = object_id(bytes(self._size))
        self._starts = array("Q")
        """Where the leaves that ``batches`` gave begin, in bytes."""

    def batches(self) -> Iterator[list[Leaf]]:
        base = self._device.tree
        walk = tree.leaf_ids(base.objects, base.root, base.height)
        while some := list(islice(walk, _LEAVES)):
            self._starts.extend(first * self._size for first, _ in some)
            yield some

    def leaves(self, some: list[Leaf]) -> int:
        """Write what differs in these leaves; return its bytes."""
        with self._vault.read() as reader:
            digests = [reader.get(tables.RUNS, leaf) for _, leaf in some]
        numbers = [
            first + n
            for (first, leaf), digest in zip(some, digests, strict=True)
            for n in self._differing(first, leaf, digest)
        ]
        for number, block in zip(numbers, self._device.scattered(numbers), strict=True):
            start = number * self._size
            stop = min(start + self._size, len(self._memory))
            if self._device.tree.block_id(number) == ZERO_ID:
                self._clear(start, stop)
            else:
                self._memory[start:stop] = block[: stop - start]
        return len(numbers) * self._size

    def _differing(self, first: int, leaf: bytes, digest: bytes | None) -> list[int]:
        """Which blocks of a leaf differ.  Read, not looked at through the mapping: that would make
        data of holes."""
        size = self._size
        there = memoryview(bytearray(tree.FANOUT * size))
        self._file.read_into(first * size, there)
        if digest == object_id(there):
            return []
        node = tree.fetch(self._device.tree.objects, [leaf])[leaf]
        found = (object_id(there[n * size : (n + 1) * size]) for n in range(tree.FANOUT))
        return [
            n
            for n, (has, wanted) in enumerate(zip(found, tree.children(node), strict=True))
            if has != (wanted if wanted != ZERO_ID else self._zero_id)
        ]

    def clear_gaps(self) -> int:
        """Make holes where the file has data and the volume has no leaf; return their bytes.

        After ``batches``, which finds the leaves.
        """
        width = tree.FANOUT * self._size
        taken = (Run(start, start + width) for start in self._starts)
        data = (Run(start, stop) for start, stop in self._file.data_runs())
        gaps = list(extents.subtracted(data, taken))
        for start, stop, _ in gaps:
            self._clear(start, stop)
        return sum(stop - start for start, stop, _ in gaps)

    def _clear(self, start: int, stop: int) -> None:
        try:
            self._memory.madvise(mmap.MADV_REMOVE, start, stop - start)
        except OSError:  # a file system without holes, or with bigger pages
            self._memory[start:stop] = bytes(stop - start)
