"""Volumes into files and streams: exact, sparse, under their names only when they are whole."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest, Conflict, NoSpace, NotFound
from blockvault.ops import export
from tests.oracle import BLOCK, Disk, noise

SIZE = (3 << 20) + 77


@pytest.fixture
def content(vault: Vault) -> bytes:
    with vault.session() as session:
        disk = Disk(SIZE, session.create_volume("v", SIZE))
        disk.write(BLOCK + 5, noise(1, 1_300_000))
        session.checkpoint()
        disk.zero(9 * BLOCK, 40 * BLOCK)
        disk.write(SIZE - 9, b"last ones")
    return bytes(disk.data)


def test_into_a_file(vault: Vault, content: bytes, tmp_path: Path) -> None:
    target = tmp_path / "out.raw"
    progress: list[int] = []
    done = export.export(
        vault, "main", None, target, progress=lambda at, total: progress.append(at)
    )
    assert target.read_bytes() == content
    assert (done.size, done.path, progress[-1]) == (SIZE, target, SIZE)
    assert progress == sorted(progress)
    assert target.stat().st_blocks * 512 < SIZE, "zeros are holes"
    assert target.stat().st_mode & 0o777 == 0o666 & ~export._umask()
    with pytest.raises(Conflict) as refused:
        export.export(vault, "main", None, target)
    assert refused.value.reason == "file-exists"


def test_force_replaces_a_file_whole(
    vault: Vault, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.raw"
    target.write_bytes(b"before")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(NoSpace):
            export.export(vault, "main", None, target, force=True)
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".blockvault", "out.raw"]
    export.export(vault, "main", None, target, force=True)
    assert target.read_bytes() == content


@pytest.mark.parametrize("name", ["folder", "fifo"])
def test_only_files_are_replaced(vault: Vault, content: bytes, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BadRequest):
        export.export(vault, "main", None, tmp_path / name, force=True)
    assert (tmp_path / "fifo").is_fifo()
    with pytest.raises(NotFound):
        export.export(vault, "main", None, tmp_path / "no" / "out.raw")


def test_into_a_stream(vault: Vault, content: bytes) -> None:
    out = io.BytesIO()
    export.export(vault, "main", None, out)
    assert out.getvalue() == content
    with pytest.raises(BadRequest):
        export.export(vault, "main", None, out, format="qcow2")


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, None), (5, 10), (SIZE - 3, None), (SIZE, None), (SIZE - 3, 99), (BLOCK, 0), (7, 2 << 20)],
)
def test_parts_of_a_volume(vault: Vault, content: bytes, offset: int, length: int | None) -> None:
    out = io.BytesIO()
    expected = content[offset:] if length is None else content[offset : offset + length]
    assert export.cat(vault, "main", "v", out, offset=offset, length=length) == len(expected)
    assert out.getvalue() == expected


@pytest.mark.parametrize(("offset", "length"), [(SIZE + 1, None), (-1, None), (0, -1)])
def test_parts_that_are_none(vault: Vault, content: bytes, offset: int, length: int | None) -> None:
    with pytest.raises(BadRequest):
        export.cat(vault, "main", "v", io.BytesIO(), offset=offset, length=length)
