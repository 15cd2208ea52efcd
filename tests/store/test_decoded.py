"""The file of decoded frames: what small reads decode is found again, proved, and bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockvault.ids import object_id
from blockvault.store import decoded, frames
from blockvault.store.decoded import ADMITTED, SLOT, DecodedFile
from blockvault.store.env import LmdbStore
from blockvault.store.frames import Objects
from blockvault.store.gathering import ObjectWriter
from blockvault.store.objects import ObjectReader
from blockvault.store.types import Options

BLOCK = 4096


def block(number: int) -> bytes:
    return b"%d " % number * (BLOCK // 8) + bytes(BLOCK - BLOCK // 8 * len(b"%d " % number))


def frame(first: int, count: int = SLOT // BLOCK) -> Objects:
    objects = [b"%08d" % (first + n) * (BLOCK // 8) for n in range(count)]
    return Objects(b"".join(objects), count, BLOCK, ())


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[DecodedFile]:
    file = DecodedFile(tmp_path, 3 * SLOT)
    yield file
    file.close()


def test_objects_come_back(kept: DecodedFile, tmp_path: Path) -> None:
    kept.put(7, frame(100))
    assert kept.get(7, 5) == b"%08d" % 105 * (BLOCK // 8)
    assert kept.get(7, 64) is None
    assert kept.get(8, 0) is None
    assert list(tmp_path.iterdir()) == [], "it has no name"


def test_the_oldest_makes_room(kept: DecodedFile) -> None:
    for number in range(1, 4 + 2 * ADMITTED):
        kept.put(number, frame(number * 100))
    there = [number for number in range(1, 20) if kept.get(number, 0) is not None]
    assert there == [3, 3 + ADMITTED, 3 + 2 * ADMITTED]
    assert all(kept.get(n, 1) == b"%08d" % (n * 100 + 1) * (BLOCK // 8) for n in there)


def test_what_is_not_worth_it(kept: DecodedFile) -> None:
    kept.put(1, frame(0, 2))
    kept.put(2, frame(0, SLOT // BLOCK + 1))
    kept.put(3, Objects(bytes(SLOT), 2, 0, (1000, SLOT)))
    assert [kept.get(number, 0) for number in (1, 2, 3)] == [None, None, None]


def test_a_disk_that_is_full_ends_it(kept: DecodedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.put(1, frame(0))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    kept.put(2, frame(100))
    monkeypatch.undo()
    kept.put(3, frame(200))
    assert kept.get(1, 0) is not None
    assert kept.get(2, 0) is kept.get(3, 0) is None


def test_a_frame_that_comes_twice_at_once_takes_one_slot(
    kept: DecodedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def again_meanwhile(*arguments: Any) -> int:
        kept.put(1, frame(0))
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", again_meanwhile)
    kept.put(1, frame(0))
    assert kept._owners.count(1) == 1
    assert kept.get(1, 0) is not None


def test_it_is_closed_when_the_last_writer_is_done(
    kept: DecodedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def closed_meanwhile(*arguments: Any) -> int:
        kept.close()
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", closed_meanwhile)
    kept.put(1, frame(0))
    assert kept._file.closed
    assert kept.get(1, 0) is None
    kept.put(2, frame(100))


def test_a_small_disk_gets_a_small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "FREE_SHARE", 1 << 60)
    file = DecodedFile(tmp_path, 1 << 40)
    file.put(1, frame(0))
    assert file.get(1, 0) is None
    file.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    options = Options(b"v" * 16, BLOCK, "zstd:3")
    with LmdbStore.create(tmp_path / "v", options) as made:
        writer = ObjectWriter(made)
        blocks = [block(number) for number in range(256)]
        writer.add_blocks([object_id(data) for data in blocks], blocks)
        with made.write() as transaction:
            transaction.add_frames(writer.finish())
        yield made


def test_small_reads_decode_a_frame_once(
    store: LmdbStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ObjectReader(store, cache_bytes=0)
    reader.keep_decoded(tmp_path, 8 * SLOT)
    decodes = []
    decode = frames.decode
    monkeypatch.setattr(frames, "decode", lambda data: decodes.append(1) or decode(data))
    for _ in range(2):
        for number in range(255, -1, -37):
            assert reader.get(object_id(block(number))) == block(number)
        wanted = {object_id(block(number)): block(number) for number in range(0, 256, 41)}
        assert reader.get_many(wanted) == wanted
    assert len(decodes) <= 4, "four frames"
    reader.close()


def test_a_file_that_is_altered_changes_nothing(store: LmdbStore, tmp_path: Path) -> None:
    reader = ObjectReader(store, cache_bytes=0)
    reader.keep_decoded(tmp_path, 8 * SLOT)
    wanted = {object_id(block(number)): block(number) for number in range(0, 256, 41)}
    assert reader.get_many(wanted) == wanted
    assert reader._file is not None
    assert reader._file._where
    descriptor = reader._file._file.fileno()
    os.pwrite(descriptor, b"?" * os.fstat(descriptor).st_size, 0)
    assert reader.get_many(wanted) == wanted
    assert all(reader.get(oid) == data for oid, data in wanted.items())
    reader.close()
