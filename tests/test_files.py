"""Small files: whole or not at all, with the mode that was asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import files


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
