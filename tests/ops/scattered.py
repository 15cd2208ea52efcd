"""A disk whose blocks lie scattered: each frame has some of nearly every leaf."""

from __future__ import annotations

from blockvault import Vault
from blockvault.model import tree
from tests.oracle import BLOCK, Disk, noise

LEAF = tree.FANOUT * BLOCK
LEAVES = 12
SIZE = LEAVES * LEAF + 3 * BLOCK + 77
STEP = 8


def make(vault: Vault) -> bytes:
    """Volume ``v`` of the current branch, and what it holds.

    Leaf 4 is written whole, 7 is zeros; of the others each commit wrote every eighth block.
    """
    with vault.session() as session:
        disk = Disk(SIZE, session.create_volume("v", SIZE))
        for start in range(STEP):
            for block in range(start, SIZE // BLOCK, STEP):
                disk.write(block * BLOCK, _shrinking(block))
            session.flush()
        disk.write(4 * LEAF, b"".join(map(_shrinking, range(1000, 1032))))
        session.flush()
        disk.zero(7 * LEAF, LEAF)
        disk.write(SIZE - 9, b"last ones")
        session.checkpoint()
        disk.write(9 * LEAF + 5, b"not in the tree yet")
    return bytes(disk.data)


def _shrinking(seed: object) -> bytes:
    """A block that is worth compressing, so that reading it means decoding its frame."""
    return noise(seed, 64) * (BLOCK // 64)
