"""Volumes into files and streams: exact, sparse, under their names only when they are whole."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest, Conflict, NoSpace, NotFound
from blockvault.ops import export, targets
from blockvault.store import filesystem
from tests.conftest import skip
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
    assert target.stat().st_mode & 0o777 == 0o666 & ~targets._umask()
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


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_sync_waits_for_the_content_then_for_the_name(
    vault: Vault,
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    need_tool: Callable[[str], str],
    image_format: str,
    force: bool,
) -> None:
    """The content is that of the file which gets the name, whoever wrote it."""
    if image_format != "raw":
        need_tool("qemu-img")
    target = tmp_path / "out.img"
    synced: list[tuple[int, bool]] = []

    def sync(path: Path) -> None:
        synced.append((path.stat().st_ino, target.exists()))

    monkeypatch.setattr(filesystem, "sync_path", sync)
    export.export(vault, "main", None, target, format=image_format, force=force)
    assert synced == [], "not unless it is asked for"
    target.unlink()
    export.export(vault, "main", None, target, format=image_format, force=force, sync=True)
    assert synced == [(target.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@pytest.mark.parametrize(
    ("folder", "state"), [(False, "the target was left as it was"), (True, "power cut may undo")]
)
def test_what_the_disk_refuses_at_the_sync_is_told(
    vault: Vault,
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: bool,
    state: str,
) -> None:
    """It is asked while we may open the file: the one that is replaced is closed to its reader."""
    target = tmp_path / "out.raw"
    target.write_bytes(b"before")
    target.chmod(0o200)

    def full(path: Path) -> None:
        assert path.stat().st_mode & 0o400
        if path.is_dir() == folder:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filesystem, "sync_path", full)
    with pytest.raises(NoSpace, match=state):
        export.export(vault, "main", None, target, force=True, sync=True)
    target.chmod(0o600)
    assert target.read_bytes() == (content if folder else b"before")


@pytest.mark.parametrize("name", ["folder", "fifo"])
def test_only_files_are_replaced(vault: Vault, content: bytes, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BadRequest):
        export.export(vault, "main", None, tmp_path / name, force=True)
    assert (tmp_path / "fifo").is_fifo()
    with pytest.raises(NotFound):
        export.export(vault, "main", None, tmp_path / "no" / "out.raw")


def test_a_replaced_file_keeps_its_mode(
    vault: Vault, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner too, as far as we may give files away."""
    target = tmp_path / "out.raw"
    target.write_bytes(b"before")
    target.chmod(0o640)
    given: list[tuple[int, int]] = []

    def refuse(path: Path, owner: int, group: int) -> None:
        given.append((owner, group))
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    export.export(vault, "main", None, target, force=True)
    assert target.read_bytes() == content
    assert target.stat().st_mode & 0o777 == 0o640
    assert given == [(-1, os.getgid()), (os.getuid(), -1)]


def test_a_replaced_file_keeps_its_owner(vault: Vault, content: bytes, tmp_path: Path) -> None:
    if os.getuid():
        skip("only root gives files away")
    target = tmp_path / "out.raw"
    target.write_bytes(b"before")
    os.chown(target, 1234, 5678)
    export.export(vault, "main", None, target, force=True)
    assert (target.stat().st_uid, target.stat().st_gid) == (1234, 5678)


def test_a_link_stays_a_link(vault: Vault, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    link = tmp_path / "out.raw"
    link.symlink_to("disks/real.raw")
    export.export(vault, "main", None, link)  # it points at nothing yet
    with pytest.raises(Conflict):
        export.export(vault, "main", None, link)
    (tmp_path / "disks" / "real.raw").write_bytes(b"before")
    export.export(vault, "main", None, link, force=True)
    assert link.is_symlink()
    assert [path.name for path in (tmp_path / "disks").iterdir()] == ["real.raw"]
    assert link.read_bytes() == content


@pytest.mark.parametrize("links", [True, False])
def test_what_appears_meanwhile_stays(
    vault: Vault, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Also where a file system has no hard links."""
    target = tmp_path / "out.raw"

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def appear(at: int, total: int) -> None:
        target.write_bytes(b"somebody else's")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(Conflict) as refused:
        export.export(vault, "main", None, target, progress=appear)
    assert refused.value.reason == "file-exists"
    assert target.read_bytes() == b"somebody else's"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".blockvault", "out.raw"]
    target.unlink()
    export.export(vault, "main", None, target)
    assert target.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [".blockvault", "out.raw"]


@pytest.mark.parametrize("fails", ["link", "replace"])
def test_a_disk_that_is_full_at_the_end_leaves_nothing(
    vault: Vault, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", full if fails == "link" else refuse)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        export.export(vault, "main", None, tmp_path / "out.raw")
    assert [path.name for path in tmp_path.iterdir()] == [".blockvault"]


@pytest.mark.parametrize("name", ["data.mdb", "new.raw", "machines/new.raw", "../link/new.raw"])
def test_nothing_is_written_into_the_vault(
    vault: Vault, content: bytes, tmp_path: Path, name: str
) -> None:
    (tmp_path / "link").symlink_to(vault.path)
    (vault.path / "machines").mkdir()
    before = sorted(vault.path.rglob("*"))
    with pytest.raises(BadRequest, match="inside the vault"):
        export.export(vault, "main", None, vault.path / name, force=True)
    assert sorted(vault.path.rglob("*")) == before
    out = io.BytesIO()
    export.export(vault, "main", None, out)
    assert out.getvalue() == content


def test_into_a_stream(vault: Vault, content: bytes) -> None:
    out = io.BytesIO()
    export.export(vault, "main", None, out)
    assert out.getvalue() == content
    with pytest.raises(BadRequest):
        export.export(vault, "main", None, out, format="qcow2")
    with pytest.raises(BadRequest):
        export.export(vault, "main", None, out, sync=True)
    assert out.getvalue() == content, "nothing more was written"


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
