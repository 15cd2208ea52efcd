"""Made-up disk images for scale: the same bytes on every machine, in any size.

An image is a *recipe*: for each 4 KiB block nothing (a hole) or a seed, and the block's bytes
follow from its seed alone.  Two images share exactly the blocks whose seeds they share.  A block
is part noise and part text, so that zstd over 64 KiB or more gains about what it gains on real
systems (3.3 times), and over 4 KiB alone less, as there.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

BLOCK = 4096
NOISE = 1200  # bytes of a block that no compressor gains on
_TEXT = b" ".join(b"%x" % (n * n * 2654435761 & 0xFFFFFFFF) for n in range(4096))


class Recipe(NamedTuple):
    """``size`` in bytes and the seeds of the blocks that are not holes, by block number."""

    size: int
    seeds: dict[int, int]


def block(seed: int) -> bytes:
    """The 4,096 bytes that belong to ``seed``."""
    rng = random.Random(seed)
    start = rng.randrange(len(_TEXT) - BLOCK)
    return rng.randbytes(NOISE) + _TEXT[start : start + BLOCK - NOISE]


def scattered(size: int, data: int, *, first_seed: int = 1) -> Recipe:
    """An image of ``size`` bytes with ``data`` bytes in runs of 64 KiB to 1 MiB, spread evenly."""
    rng = random.Random(first_seed)
    total, wanted = size // BLOCK, min(data, size) // BLOCK
    seeds: dict[int, int] = {}
    mean = 136  # blocks a run
    runs = max(1, wanted // mean)
    for number in range(runs):
        length = min(rng.randint(16, 256), wanted - len(seeds))
        start = number * total // runs
        for index in range(start, min(start + length, (number + 1) * total // runs)):
            seeds[index] = first_seed * 1_000_003 + index
    return Recipe(size, seeds)


def changed(recipe: Recipe, blocks: int, *, generation: int, spread: bool = True) -> Recipe:
    """The next state: ``blocks`` blocks get other bytes, scattered or in one run."""
    rng = random.Random(generation)
    places = sorted(recipe.seeds)
    blocks = min(blocks, len(places))
    chosen = rng.sample(places, blocks) if spread else places[:blocks]
    return Recipe(
        recipe.size,
        recipe.seeds | {index: generation * 1_000_000_007 + index for index in chosen},
    )


def series(size: int) -> Iterator[tuple[str, str, Recipe]]:
    """Name, machine and recipe of four states of one disk and one of a second that shares half."""
    first = scattered(size, size // 3)
    second = _grown(changed(first, len(first.seeds) // 20, generation=2), size // 8, generation=3)
    third = changed(second, len(second.seeds) // 10, generation=4, spread=False)
    fourth = changed(third, len(third.seeds) // 20, generation=5)
    moved = Recipe(size, dict(zip(sorted(third.seeds), sorted(first.seeds.values()), strict=False)))
    for name, recipe in (("base", first), ("v2", second), ("v3", third), ("v4", fourth)):
        yield name, "main", recipe
    yield "b", "second", changed(moved, len(moved.seeds) // 2, generation=6)


def write(path: Path, recipe: Recipe) -> None:
    """Write the image as a sparse file."""
    with path.open("wb") as file:
        file.truncate(recipe.size)
        for offset, data in _runs(recipe):
            os.pwrite(file.fileno(), data, offset)


def _grown(recipe: Recipe, data: int, *, generation: int) -> Recipe:
    """More data in what was free: the holes at the end of the image are filled first."""
    seeds = dict(recipe.seeds)
    wanted = data // BLOCK
    for index in range(recipe.size // BLOCK - 1, -1, -1):
        if wanted == 0:
            break
        if index not in seeds:
            seeds[index] = generation * 1_000_000_007 + index
            wanted -= 1
    return Recipe(recipe.size, seeds)


def _runs(recipe: Recipe) -> Iterator[tuple[int, bytes]]:
    """Consecutive blocks as (offset, bytes)."""
    ordered = enumerate(sorted(recipe.seeds))
    for _, group in groupby(ordered, key=lambda pair: pair[1] - pair[0]):
        indices = [index for _, index in group]
        yield indices[0] * BLOCK, b"".join(block(recipe.seeds[index]) for index in indices)
