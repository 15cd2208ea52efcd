"""What a guest does between two measured commands: small writes, through blockvault's Python API.

python -m tools.bench.guest VAULT VOLUME write OFFSET SEED COUNT STRIDE
python -m tools.bench.guest VAULT VOLUME grow SNAPSHOTS
python -m tools.bench.guest VAULT VOLUME nest BRANCHES
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import blockvault

BLOCK = 4096


def write(path: str, volume: str, offset: int, seed: int, count: int, stride: int) -> None:
    """Write ``count`` blocks of noise from ``offset`` on, ``stride`` bytes apart, and flush."""
    rng = random.Random(seed)
    with blockvault.open(path) as vault, vault.session("main") as session:
        device = session.device(volume)
        for number in range(count):
            device.write(offset + number * stride, rng.randbytes(BLOCK))
        session.flush()


def grow(path: str, volume: str, snapshots: int) -> None:
    """Take ``snapshots`` snapshots, each after one more changed block."""
    rng = random.Random(snapshots)
    with blockvault.open(path) as vault, vault.session("main") as session:
        device = session.device(volume)
        blocks = device.size // BLOCK
        for number in range(snapshots):
            device.write(rng.randrange(blocks) * BLOCK, rng.randbytes(BLOCK))
            session.snapshot(f"snapshot {number}")


def nest(path: str, volume: str, branches: int) -> None:
    """Branches ``nested-0`` and so on, each from the one before, with a change and a snapshot."""
    rng = random.Random(branches)
    source = "main"
    with blockvault.open(path) as vault:
        for number in range(branches):
            name = f"nested-{number}"
            vault.create_branch(name, source)
            with vault.session(name) as session:
                session.device(volume).write(number * BLOCK, rng.randbytes(BLOCK))
                session.snapshot(name)
            source = name


def main() -> None:
    path, volume, what, *numbers = sys.argv[1:]
    deeds: dict[str, Callable[..., None]] = {"write": write, "grow": grow, "nest": nest}
    deeds[what](path, volume, *map(int, numbers))


if __name__ == "__main__":
    main()
