"""Long reads go by whole leaves: right wherever they begin, and decoded only once."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault import Vault
from blockvault.device import Device
from blockvault.model import tree
from blockvault.ops import reading, trails
from blockvault.ops.ingest import Image, import_images
from blockvault.ops.reading import StateDevice
from blockvault.store.objects import ObjectReader
from tests.oracle import BLOCK, Disk, noise

LEAF = tree.FANOUT * BLOCK
BLOCKS = 37 * tree.FANOUT + 5
SIZE = BLOCKS * BLOCK + 11
REWRITTEN = range(20 * tree.FANOUT)


def image() -> bytes:
    """Blocks that compress, then zeros, then more of those."""
    text = bytearray().join(b"%07d " % number * (BLOCK // 8) for number in range(BLOCKS + 1))
    text[9 * LEAF : 13 * LEAF] = bytes(4 * LEAF)
    return bytes(text[:SIZE])


def rewrite(disk: Disk, seed: int) -> None:
    """As a guest does: a block here and there, some of them zeros, and parts of some."""
    rng = random.Random(seed)
    for number in range(150):
        at = rng.choice(REWRITTEN) * BLOCK
        if number % 9 == 0:
            disk.zero(at, BLOCK)
        else:
            disk.write(at + number % 2 * 100, noise((seed, number), BLOCK - 100))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vault, bytes]]:
    """A vault with a disk that was imported and then written to; and what that holds."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "image").write_bytes(image())
    with Vault.create(folder / "vault") as vault:
        import_images(vault, [Image(folder / "image", "v")])
        with vault.session() as session:
            head = Disk(SIZE, session.device())
            head.data[:] = image()
            rewrite(head, 1)
            session.checkpoint()
            rewrite(head, 2)
        yield vault, bytes(head.data)


@contextmanager
def opened(vault: Vault, *, kept: bool) -> Iterator[StateDevice]:
    """The disk for a reader that keeps hardly a frame, with or without a file for what it reads."""
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(ObjectReader(vault.store, cache_bytes=1)) as objects,
    ):
        patch.setattr(vault, "objects", objects)
        if kept:
            objects.keep_decoded(vault.path, 64 << 20)
        yield reading.open_device(vault, vault.resolve("main"), "v")


def read(device: Device, data: bytes, offset: int, length: int) -> None:
    """Read, and compare; what reaches beyond the end is left out."""
    length = min(length, SIZE - offset)
    found = device.read(offset, length)
    assert found == data[offset : offset + length], (offset, length)


STEPS = [LEAF // 4, LEAF // 2, LEAF, LEAF + BLOCK, 2 * LEAF, 3 * LEAF - 5 * BLOCK, LEAF + 7]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("start", [0, 5 * BLOCK, 100])
@pytest.mark.parametrize("step", STEPS)
def test_from_end_to_end(disk: tuple[Vault, bytes], step: int, start: int, *, kept: bool) -> None:
    vault, data = disk
    with opened(vault, kept=kept) as device:
        for _ in range(2):
            for offset in range(start, SIZE, step):
                read(device, data, offset, step)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("step", [LEAF // 4, LEAF // 2, LEAF])
def test_many_at_a_time(disk: tuple[Vault, bytes], step: int, *, kept: bool) -> None:
    vault, data = disk
    with opened(vault, kept=kept) as device:
        for start in range(0, 32 * LEAF, 5 * step):
            ranges = [(start + at * step, step) for at in range(5)]
            found = device.read_many(ranges)
            assert [b"".join(part) if isinstance(part, list) else part for part in found] == [
                data[offset : offset + length] for offset, length in ranges
            ]


@given(
    streams=st.lists(
        st.tuples(st.integers(0, SIZE - 1), st.sampled_from(STEPS)), min_size=1, max_size=20
    ),
    order=st.randoms(use_true_random=False),
    kept=st.booleans(),
)
def test_several_at_once(
    disk: tuple[Vault, bytes],
    streams: list[tuple[int, int]],
    order: random.Random,
    *,
    kept: bool,
) -> None:
    vault, data = disk
    with opened(vault, kept=kept) as device:
        going = dict(enumerate(streams))
        for _ in range(60):
            if going:
                number = order.choice([*going])
                offset, step = going.pop(number)
                read(device, data, offset, step)
                if offset + step < SIZE:
                    going[number] = offset + step, step
        assert len(device._trails) <= trails._FOLLOWED


def test_in_several_threads(disk: tuple[Vault, bytes]) -> None:
    vault, data = disk
    with opened(vault, kept=True) as device, ThreadPoolExecutor(8) as threads:

        def run(number: int) -> None:
            for offset in range(number * BLOCK, SIZE, LEAF // 2 + number * BLOCK):
                read(device, data, offset, LEAF // 2 + number * BLOCK)

        for done in [threads.submit(run, number) for number in range(24)]:
            done.result()


def test_while_a_guest_writes(vault: Vault, tmp_path: Path) -> None:
    vault.objects.keep_decoded(tmp_path, 64 << 20)
    with vault.session() as session:
        head = Disk(SIZE, session.create_volume("v", SIZE))
        head.write(0, image())
        for seed in range(6):
            rewrite(head, seed)
            for offset in range(5 * BLOCK * seed, SIZE, 2 * LEAF):
                read(session.device(), bytes(head.data), offset, 2 * LEAF)
            (session.flush, session.checkpoint)[seed % 2]()


@pytest.mark.parametrize("step", [LEAF // 4, LEAF // 2, 2 * LEAF])
@pytest.mark.parametrize("start", [0, 5 * BLOCK])
def test_the_second_time_nothing_is_decoded(
    disk: tuple[Vault, bytes], monkeypatch: pytest.MonkeyPatch, start: int, step: int
) -> None:
    vault, data = disk
    places = range(start, 34 * LEAF, step)
    with opened(vault, kept=True) as device:
        for offset in (*places, start):
            read(device, data, offset, step)
        monkeypatch.setattr(vault.store, "read", lambda: pytest.fail("it asked the store"))
        for offset in places[1:]:
            read(device, data, offset, step)


def test_a_file_that_is_altered_changes_nothing(disk: tuple[Vault, bytes]) -> None:
    vault, data = disk
    with opened(vault, kept=True) as device:
        for _ in range(2):
            for offset in range(0, SIZE, 2 * LEAF):
                read(device, data, offset, 2 * LEAF)
            kept = vault.objects._at_hand._file
            assert kept is not None
            assert kept._ring._where
            os.pwrite(kept._ring.file.fileno(), b"?" * SIZE, 0)
