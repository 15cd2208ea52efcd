"""A file made the same as a volume: exactly, and by writing no more than differs."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest, IOFailed
from blockvault.model.snapshot import Volume
from blockvault.ops import attachments
from blockvault.ops.overwrite import overwrite

BLOCKS = 1000
MEMORY_FILES = Path("/dev/shm")


@pytest.fixture(params=[4096, 16384])
def vault(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Vault]:
    with Vault.create(tmp_path / "vault", block_size=request.param) as made:
        yield made


@pytest.fixture
def file() -> Iterator[Path]:
    path = MEMORY_FILES / f"bvt-overwrite-{os.getpid()}"
    yield path
    path.unlink()


def sparse(path: Path, size: int, block: int, seed: int) -> bytes:
    """A file with data in a tenth of its blocks, and one part without any."""
    rng = random.Random(seed)
    with open(path, "wb") as out:
        out.truncate(size)
        for number in range(size // block):
            if rng.random() < 0.1 and not 300 < number < 600:
                out.seek(number * block)
                out.write(rng.randbytes(block))
    return path.read_bytes()


def kept(vault: Vault, path: Path) -> Volume:
    with vault.guard(), vault.session("main") as session:
        made = attachments.keep(vault, {"memory": path})
        session.snapshot("memory", attachments=made)
    return made[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_file_becomes_the_volume(vault: Vault, file: Path, seed: int) -> None:
    block = vault.options.block_size
    wanted = sparse(file, BLOCKS * block, block, seed)
    volume = kept(vault, file)
    held = os.stat(file).st_blocks
    assert overwrite(vault, volume, file) == 0, "nothing differs"
    sparse(file, BLOCKS * block, block, seed + 100)
    assert overwrite(vault, volume, file) > 0
    assert file.read_bytes() == wanted
    assert os.stat(file).st_blocks <= held, "what is zero is given back"
    assert overwrite(vault, volume, file) == 0


def test_only_what_differs_is_written(vault: Vault, file: Path) -> None:
    block = vault.options.block_size
    wanted = sparse(file, BLOCKS * block, block, 1)
    volume = kept(vault, file)
    held = os.stat(file).st_blocks
    with open(file, "r+b") as out:
        for number in (0, 7, 450, BLOCKS - 1):
            out.seek(number * block)
            out.write(b"x" * block)
    count = overwrite(vault, volume, file)
    assert 4 * block <= count <= 5 * block
    assert file.read_bytes() == wanted
    assert os.stat(file).st_blocks <= held


def test_everything_back_to_zeros(vault: Vault, file: Path) -> None:
    block = vault.options.block_size
    file.write_bytes(bytes(64 * block))
    volume = kept(vault, file)
    file.write_bytes(b"y" * 64 * block)
    assert overwrite(vault, volume, file) == 64 * block
    assert file.read_bytes() == bytes(64 * block)
    assert os.stat(file).st_blocks == 0


def test_a_file_that_does_not_fit(vault: Vault, file: Path, tmp_path: Path) -> None:
    file.write_bytes(bytes(1 << 20))
    volume = kept(vault, file)
    file.write_bytes(b"x" * (2 << 20))
    with pytest.raises(BadRequest):
        overwrite(vault, volume, file)
    assert file.read_bytes() == b"x" * (2 << 20)
    with pytest.raises(IOFailed):
        overwrite(vault, volume, tmp_path / "none")
