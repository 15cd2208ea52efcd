"""Devices into files: exact in any order, and each frame decoded once wherever its blocks go."""

from __future__ import annotations

import os
import random
from array import array
from collections import Counter
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import Damaged, NoSpace
from blockvault.ops import copying
from blockvault.ops.ingest import Image, import_images
from blockvault.store import tables
from blockvault.store.objects import ObjectReader
from tests.ops.scattered import LEAF, LEAVES, SIZE, STEP
from tests.oracle import BLOCK, noise


def copied(vault: Vault, path: Path) -> tuple[bytes, int, list[int]]:
    """What the copy of the volume is, how many bytes were said to be written, and the progress."""
    progress: list[int] = []
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        os.ftruncate(fd, SIZE)
        count = copying.copy_out(vault.device("main", "v"), fd, lambda at, _: progress.append(at))
    finally:
        os.close(fd)
    return path.read_bytes(), count, progress


def test_each_frame_is_decoded_once(
    vault: Vault,
    scattered: bytes,
    decoded: Counter[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copying, "WINDOW", LEAF)
    monkeypatch.setattr(copying, "_WRITE", LEAF)
    found, count, progress = copied(vault, tmp_path / "copy")
    assert found == scattered
    assert count == SIZE - LEAF, "all but the zeros"
    assert progress == sorted(progress)
    assert progress[-1] == SIZE
    assert len(decoded) > STEP
    assert set(decoded.values()) == {1}
    assert (tmp_path / "copy").stat().st_blocks * 512 < SIZE, "zeros are a hole"

    decoded.clear()
    device = vault.device("main", "v")
    assert b"".join(device.read(at, LEAF) for at in range(0, SIZE - LEAF, LEAF)) in scattered
    assert max(decoded.values()) > LEAVES // 2, "in its own order a disk has them decoded again"


@pytest.mark.parametrize("put_off", [1, 50, 10_000])
@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_in_parts(
    vault: Vault,
    scattered: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    put_off: int,
    at_once: int,
) -> None:
    monkeypatch.setattr(copying, "WINDOW", 2 * LEAF)
    monkeypatch.setattr(copying, "_WRITE", LEAF)
    monkeypatch.setattr(copying, "_PUT_OFF", put_off)
    monkeypatch.setattr(copying, "_BYTES_AT_ONCE", at_once * BLOCK)
    monkeypatch.setattr(copying, "_PIECES", 5)
    found, count, progress = copied(vault, tmp_path / "copy")
    assert (found, count) == (scattered, SIZE - LEAF)
    assert progress == sorted(progress)


@pytest.mark.parametrize("leaves", [1, 2, 64])
def test_zeros_anywhere_stay_holes(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: int
) -> None:
    rng, size = random.Random(leaves), 20 * LEAF + 700
    image = bytearray(noise(1, size))
    for _ in range(60):
        at, length = rng.randrange(20 * 32) * BLOCK, rng.choice([1, 2, 5, 40]) * BLOCK
        image[at : at + length] = bytes(len(image[at : at + length]))
    path = tmp_path / "image"
    path.write_bytes(image)
    import_images(vault, [Image(path, "v")])
    with vault.session() as session:
        device = session.device("v")
        device.write(5 * LEAF, noise(3, 3 * BLOCK))
        device.zero(7 * LEAF + BLOCK, 9 * BLOCK)
        device.trim(11 * LEAF, 2 * LEAF)
        device.flush()
    now = vault.device("main", "v").read(0, size)
    monkeypatch.setattr(copying, "WINDOW", leaves * LEAF)
    monkeypatch.setattr(copying, "_WRITE", 2 * LEAF)
    fd = os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT)
    try:
        count = copying.copy_out(vault.device("main", "v"), fd, lambda at, total: None)
        os.ftruncate(fd, size)
    finally:
        os.close(fd)
    assert (tmp_path / "copy").read_bytes() == now
    blocks = [now[at : at + BLOCK] for at in range(0, size, BLOCK)]
    assert count == sum(len(block) for block in blocks if any(block))
    assert (tmp_path / "copy").stat().st_blocks * 512 <= count + 16 * BLOCK
    assert count < size - 50 * BLOCK


def test_objects_that_moved_meanwhile_are_looked_up(
    vault: Vault, scattered: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tables.location(1 << 20, 0)
    monkeypatch.setattr(ObjectReader, "places", lambda _, ids: array("Q", [gone] * len(ids)))
    assert copied(vault, tmp_path / "copy")[0] == scattered


@pytest.mark.usefixtures("scattered")
def test_an_object_that_is_missing(vault: Vault, tmp_path: Path) -> None:
    oid = vault.device("main", "v").ids(0, 1)[0]
    with vault.store.write() as writer:
        writer.unindex([oid])
    with pytest.raises(Damaged, match="missing"):
        copied(vault, tmp_path / "copy")


@pytest.mark.usefixtures("scattered")
@pytest.mark.parametrize("room", [LEAF, 4 * LEAF], ids=["in order", "put off"])
def test_a_disk_that_is_full(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    written, pwritev = 0, os.pwritev

    def limited(fd: int, pieces: list[bytes], offset: int) -> int:
        nonlocal written
        written += sum(map(len, pieces))
        if written > room:
            raise OSError(28, "No space left on device")
        return pwritev(fd, pieces, offset)

    monkeypatch.setattr(os, "pwritev", limited)
    with pytest.raises(NoSpace, match="device; this is left"), copying.writing("this is left"):
        copied(vault, tmp_path / "copy")
