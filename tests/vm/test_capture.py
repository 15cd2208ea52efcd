"""A file captured while it is written: exactly what it was at the moment of the freeze."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest
from blockvault.ops import attachments
from blockvault.ops.capture import PAGE, Capture

PAGES = 3000


@pytest.fixture(params=[4096, 16384])
def vault(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Vault]:
    with Vault.create(tmp_path / "vault", block_size=request.param) as made:
        yield made


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, PAGES * PAGE)
    yield fd
    os.close(fd)


def scribble(fd: int, rng: random.Random, count: int) -> None:
    for _ in range(count):
        os.pwrite(fd, rng.randbytes(PAGE), rng.randrange(PAGES) * PAGE)


def everything(fd: int) -> bytes:
    return os.pread(fd, PAGES * PAGE, 0)


@pytest.mark.parametrize("seed", range(4))
def test_the_moment_of_the_freeze_is_what_is_kept(vault: Vault, memory: int, seed: int) -> None:
    rng = random.Random(seed)
    scribble(memory, rng, 300)
    before = None
    for _ in range(3):
        with Capture(vault, memory, "memory", before) as capture:
            capture.stream()
            scribble(memory, rng, 40)
            os.pwrite(memory, bytes(PAGE), rng.randrange(PAGES) * PAGE)
            capture.settle()
            scribble(memory, rng, 20)
            late = capture.freeze()
            assert PAGE <= late <= 21 * PAGE
            wanted = everything(memory)
            scribble(memory, rng, 20)
            before, frames = capture.finish()
            with vault.transaction() as transaction:
                transaction.add_frames(frames)
        assert attachments.device(vault, before).read(0, before.size) == wanted


def test_memory_that_the_guest_gave_back_reads_as_zeros(vault: Vault, memory: int) -> None:
    rng = random.Random(1)
    scribble(memory, rng, 200)
    with Capture(vault, memory, "memory", None) as capture:
        capture.stream()
        os.ftruncate(memory, 0)
        os.ftruncate(memory, PAGES * PAGE)
        capture.freeze()
        volume, frames = capture.finish()
        with vault.transaction() as transaction:
            transaction.add_frames(frames)
    device = attachments.device(vault, volume)
    assert device.read(0, volume.size) == bytes(PAGES * PAGE)


def test_untouched_memory_stays_untouched(vault: Vault, memory: int) -> None:
    """Looking at a hole through a mapping would allocate it: guests would grow by snapshots."""
    os.pwrite(memory, b"x" * PAGE, 5 * PAGE)
    held = os.fstat(memory).st_blocks
    with Capture(vault, memory, "memory", None) as capture:
        capture.stream()
        capture.settle()
        capture.freeze()
        capture.finish()
    assert os.fstat(memory).st_blocks == held


def test_restored_memory_is_sparse_and_the_same(vault: Vault, memory: int) -> None:
    scribble(memory, random.Random(2), 50)
    with Capture(vault, memory, "memory", None) as capture:
        capture.stream()
        capture.freeze()
        volume, frames = capture.finish()
        with vault.transaction() as transaction:
            transaction.add_frames(frames)
    other = os.memfd_create("other")
    try:
        attachments.restore(vault, volume, other)
        assert everything(other) == everything(memory)
        assert os.fstat(other).st_blocks * 512 <= 50 * vault.options.block_size
    finally:
        os.close(other)


def test_what_is_no_memory(vault: Vault) -> None:
    fd = os.memfd_create("odd")
    try:
        for size in (0, 100):
            os.ftruncate(fd, size)
            with pytest.raises(BadRequest):
                Capture(vault, fd, "memory", None)
    finally:
        os.close(fd)
