"""Headers of sub-pages: every bit that LMDB believes is held against what the rows allow."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from blockvault.ids import object_id
from blockvault.store import pages, shared, subpages, tables
from blockvault.store.codec import Codec
from blockvault.store.env import LmdbStore
from blockvault.store.frames import Frame, encode
from blockvault.store.index import ENTRY_SIZE
from blockvault.store.types import Options

BLOCK, ROW = 4096, ENTRY_SIZE - 1
HEADER = struct.Struct("<QHHHH")
EXPECTED = pages.LEAF | pages.LEAF2 | pages.SUBPAGE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of a few hundred objects: keys of its index have one row, or several, or none."""
    rng = random.Random(1)
    options = Options(vault_id=bytes(16), block_size=BLOCK, compression="none")
    with LmdbStore.create(tmp_path / "v", options) as store, store.write() as writer:
        blocks = [rng.randbytes(BLOCK) for _ in range(300)]
        frame = encode(blocks, Codec("none"))
        writer.add_frames([Frame(frame, tuple(map(object_id, blocks)))])
    return tmp_path / "v" / shared.DATA


def headers(data: bytes) -> list[int]:
    """Where sub-pages begin, by what they look like."""
    found = []
    for at in range(2 * 4096, len(data) - HEADER.size):
        _, pad, flags, lower, _ = HEADER.unpack_from(data, at)
        if pad == ROW and flags & ~pages.DIRTY == EXPECTED and 18 <= lower < 4096:
            found.append(at)
    return found


def test_a_sound_index_has_nothing_to_say(path: Path) -> None:
    assert len(headers(path.read_bytes())) > 100
    assert subpages.damaged(path, tables.INDEX, ROW) == []
    assert subpages.damaged(path, "no such table", ROW) == []


def test_every_bit_of_a_header_is_found(path: Path) -> None:
    """But for the page number, which a sub-page has no use for, and the mark of a dirty page."""
    data = path.read_bytes()
    # Pages that were freed keep their looks: only those in use are answered for.
    used = [at for at in headers(data) if spoilt(path, data, at + 8, 0)]
    assert len(used) > 50
    for at in random.Random(2).sample(used, 8):
        for bit in range(64):
            if 1 << bit != pages.DIRTY << 16:
                assert spoilt(path, data, at + 8 + bit // 8, bit % 8), f"bit {bit} at {at}"


def spoilt(path: Path, data: bytes, at: int, bit: int) -> list[str]:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    path.write_bytes(changed)
    return subpages.damaged(path, tables.INDEX, ROW)
