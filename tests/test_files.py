"""Small files: whole or not at all, with the mode that was asked for."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockvault import files
from tests.conftest import skip


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize(("asked", "given"), [(None, 0o600), (0o666, 0o644)])
def test_a_new_file(tmp_path: Path, asked: int | None, given: int) -> None:
    path = tmp_path / "file"
    files.replace(path, b"content", **({} if asked is None else {"mode": asked}))
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == given
    assert list(tmp_path.iterdir()) == [path]


def test_who_writes_alone_writes_over_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / "file.new").write_bytes(b"half, and longer than the whole")
    files.replace(path, b"content", alone=True)
    assert path.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("alone", [False, True])
def test_what_somebody_laid_in_its_way_is_not_written_to(tmp_path: Path, alone: bool) -> None:
    path, theirs = tmp_path / "file", tmp_path / "theirs"
    theirs.write_bytes(b"theirs")
    (tmp_path / f"file.{'new' if alone else os.getpid()}").symlink_to(theirs)
    files.replace(path, b"content", alone=alone)
    assert theirs.read_bytes() == b"theirs"
    assert path.read_bytes() == b"content"
    assert not path.is_symlink()


def test_whoever_reads_sees_one_or_the_other(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([n]) * 300_000 for n in range(2)]
    path.write_bytes(contents[0])
    ended = threading.Event()

    def alternate() -> None:
        for number in range(200):
            files.replace(path, contents[number % 2])
        ended.set()

    writer = threading.Thread(target=alternate)
    writer.start()
    seen = set()
    while not ended.is_set():
        seen.add(path.read_bytes())
    writer.join()
    assert seen <= set(contents)


def test_what_cannot_be_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"space.*'{path}'"):
        files.replace(path, b"after", durable=True)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError) as missing:
        files.replace(tmp_path / "no" / "such", b"")
    assert missing.value.filename == str(tmp_path / "no" / "such")


def test_the_bytes_are_durable_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "file", []
    rename, sync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: done.append("sync") or sync(fd))
    monkeypatch.setattr(Path, "replace", lambda *a: done.append("rename") or rename(*a))
    files.replace(path, b"quick")
    files.replace(path, b"durable", durable=True)
    assert done == ["rename", "sync", "rename"]
    assert path.read_bytes() == b"durable"


def test_a_file_is_opened_and_made_if_need_be(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    os.close(files.opened(path))
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"there")
    descriptor = files.opened(path)
    assert os.pread(descriptor, 9, 0) == b"there"
    os.close(descriptor)
    link.symlink_to("nothing")
    with pytest.raises(OSError, match="symbolic links"):
        files.opened(link)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: os.close(files.opened(path)),
        files.folder,
        lambda path: files.replace(path, b""),
    ],
)
def test_what_root_makes_belongs_to_the_owner_of_the_directory(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    if os.geteuid():
        skip("only root can give files away")
    os.chown(tmp_path, 1234, 4321)
    make(tmp_path / "made")
    made = (tmp_path / "made").stat()
    assert (made.st_uid, made.st_gid) == (1234, 4321)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "secret").touch()


def _link(path: Path) -> None:
    path.with_name("elsewhere").mkdir()
    path.symlink_to("elsewhere")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path.with_name("elsewhere")))
    os.link(path.with_name("elsewhere"), path)


@pytest.mark.parametrize("put", [Path.touch, _folder, _link, _socket])
def test_root_gives_away_nothing_that_took_the_place_of_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path], None]
) -> None:
    if os.geteuid():
        skip("only root can give files away")
    put(tmp_path / "made")
    os.chown(tmp_path, 1234, 4321)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    files.folder(tmp_path / "made")
    assert {path.lstat().st_uid for path in tmp_path.rglob("*")} == {0}


def test_any_descriptor_can_be_waited_for() -> None:
    """Also one with a number that ``select`` does not take."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, limit[1]), limit[1]))
    ours, theirs = os.pipe()
    high = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 1500)
    try:
        assert not files.readable(high)
        assert not files.readable(high, -1)
        os.write(theirs, b"x")
        assert files.readable(high, 60)
    finally:
        for descriptor in (ours, theirs, high):
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_a_directory_is_locked_by_one_at_a_time(tmp_path: Path) -> None:
    with files.locked(tmp_path, 0) as first, files.locked(tmp_path, 0.05) as second:
        assert (first, second) == (True, False)
    with files.locked(tmp_path, 0) as third:
        assert third
