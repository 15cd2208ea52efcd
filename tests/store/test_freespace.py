"""Free pages become holes, a moment at a time, beside writers and readers that lose nothing."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault.ids import object_id
from blockvault.store import freespace, pages, salvage, shared
from blockvault.store.codec import Codec
from blockvault.store.env import LmdbStore
from blockvault.store.frames import Frame, encode
from blockvault.store.types import Options
from blockvault.store.writetxn import LmdbWriter

BLOCK = 4096
RAW = Codec("none")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    options = Options(vault_id=bytes(16), block_size=BLOCK, compression="none")
    with LmdbStore.create(tmp_path / "v", options) as store:
        yield store


def add(store: LmdbStore, rng: random.Random, count: int) -> list[int]:
    """Store so many frames of 16 random blocks; return their numbers."""
    before = newest(store)
    with store.write() as writer:
        for _ in range(count):
            blocks = [rng.randbytes(BLOCK) for _ in range(16)]
            writer.add_frames([Frame(encode(blocks, RAW), tuple(map(object_id, blocks)))])
    return list(range(before + 1, newest(store) + 1))


def drop(store: LmdbStore, numbers: list[int]) -> None:
    with store.write() as writer:
        writer.drop_frames(numbers)


def newest(store: LmdbStore) -> int:
    with store.read() as reader:
        return reader.newest_frame()


def taken(store: LmdbStore) -> int:
    return (store.path / shared.DATA).stat().st_blocks * 512


def contents(store: LmdbStore) -> dict[int, bytes]:
    with store.read() as reader:
        return dict(reader.frames())


def two_commits(store: LmdbStore, rng: random.Random) -> None:
    """LMDB may use what the newest commit freed only when it is the newest no more."""
    add(store, rng, 1)
    add(store, rng, 1)


def slices_end_after(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """End them as if somebody always waited."""
    monkeypatch.setattr(freespace, "SLICE", seconds)
    monkeypatch.setattr(LmdbWriter, "awaited", True)


@pytest.mark.parametrize("slice_", [0.0, 10.0], ids=["many slices", "one slice"])
def test_dropped_frames_go_back_to_the_file_system(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch, slice_: float
) -> None:
    slices_end_after(monkeypatch, slice_)
    rng = random.Random(1)
    numbers = add(store, rng, 300)
    drop(store, numbers[::2])
    two_commits(store, rng)
    kept, before = contents(store), taken(store)
    given = store.give_back()
    assert given == before - taken(store)
    assert given > 0.9 * 150 * 17 * BLOCK
    assert contents(store) == kept
    assert store.structure() == []
    assert store.give_back() == 0, "nothing is left that would be worth it"


def test_a_slice_ends_when_somebody_waits(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freespace, "SLICE", 0.0)
    rng = random.Random(6)
    drop(store, add(store, rng, 300)[::2])
    two_commits(store, rng)
    asked: list[bool] = []

    def awaited() -> bool:
        asked.append(len(asked) == 9)
        return asked[-1]

    fd = os.open(store.path / shared.DATA, os.O_RDWR)
    try:
        with store.write() as writer:
            reached = freespace.slice_of(fd, freespace.BEGIN, writer.txn_id, None, awaited)
            assert len(asked) == 10, "nobody waited before, and nothing is done afterwards"
            assert reached is not None
            assert freespace.slice_of(fd, reached, writer.txn_id, None, lambda: False) is None
    finally:
        os.close(fd)


def test_short_runs_are_left_to_lmdb_where_they_are_not_worth_it() -> None:
    numbers = [1, 2, 3, 7, 9, 10]
    assert list(freespace._runs(numbers, 1)) == [(1, 4), (7, 8), (9, 11)]
    assert list(freespace._runs(numbers, 2)) == [(1, 4), (9, 11)]
    assert list(freespace._runs(numbers, 4)) == []
    assert list(freespace._runs([], 1)) == []
    most = freespace._PUNCH_BYTES >> 12
    assert list(freespace._runs(list(range(most + 2)), 1)) == [(0, most), (most, most + 2)]


def test_what_two_commits_freed_goes_back_as_one_hole(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(7)
    numbers = add(store, rng, 200)
    with store.read() as held:  # so that LMDB keeps one row for each commit
        for number in numbers:
            drop(store, [number])
        assert held.newest_frame() == numbers[-1]
    two_commits(store, rng)
    holes: list[tuple[int, int]] = []
    monkeypatch.setattr(freespace, "punch_hole", lambda _, *hole: holes.append(hole) or True)
    store.give_back()
    assert sum(length for _, length in holes) > 0.9 * 200 * 17 * BLOCK
    assert len(holes) < 100


def test_little_is_left_alone(store: LmdbStore) -> None:
    rng = random.Random(2)
    numbers = add(store, rng, 300)
    drop(store, numbers[:20])
    two_commits(store, rng)
    before = taken(store)
    assert store.give_back() == 0
    assert taken(store) == before


def test_what_a_reader_sees_is_not_punched(store: LmdbStore) -> None:
    rng = random.Random(3)
    numbers = add(store, rng, 200)
    with store.read() as reader:
        seen = dict(reader.frames())
        inside = threading.Thread(
            target=lambda: (drop(store, numbers), two_commits(store, rng), store.give_back())
        )
        inside.start()
        inside.join()
        assert dict(reader.frames()) == seen
    assert store.give_back() > 0


def test_the_commit_before_the_newest_one_keeps_its_pages(store: LmdbStore) -> None:
    """It is what is left when the newest meta page is destroyed."""
    rng = random.Random(8)
    numbers = add(store, rng, 300)
    before = contents(store)
    drop(store, numbers[::2])
    store.give_back()
    store.close()
    with open(store.path / shared.DATA, "r+b") as file:
        metas = [pages.read_meta(file.fileno(), number) for number in (0, 1)]
        newest = max(filter(None, metas))
        file.seek(metas.index(newest) * newest.page_size)
        file.write(bytes(newest.page_size))
    assert salvage.rescue_meta(store.path)
    (store.path / shared.HEAD).unlink()
    with LmdbStore.open(store.path) as again:
        assert again.structure() == []
        assert contents(again) == before


def test_commits_between_slices_lose_nothing(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that were free when a slice ended are taken by a commit before the next begins."""
    slices_end_after(monkeypatch, 0.0)
    rng = random.Random(4)
    numbers = add(store, rng, 400)
    for start in range(0, 300, 30):
        drop(store, numbers[start : start + 30])
    two_commits(store, rng)
    known = contents(store)
    slices = 0

    def between(*_: object) -> None:
        nonlocal slices
        slices += 1
        if slices % 3 == 0:
            for number in add(store, rng, 2):
                known[number] = contents(store)[number]

    monkeypatch.setattr("blockvault.store.env.time.sleep", between)
    assert store.give_back() > 0
    assert slices > 20
    assert contents(store) == known
    assert store.structure() == []


def test_the_list_is_walked_from_any_row(store: LmdbStore) -> None:
    rng = random.Random(5)
    numbers = add(store, rng, 400)
    for number in numbers:
        drop(store, [number])
        with store.read() as held:  # so that LMDB keeps one row for each commit
            threading.Thread(target=add, args=(store, rng, 1)).run()
            assert held.newest_frame()
    fd = os.open(store.path / shared.DATA, os.O_RDONLY)
    try:
        meta = max(filter(None, (pages.read_meta(fd, number) for number in (0, 1))))
        every = list(pages.numbered_rows(fd, meta, meta.roots[0]))
        keys = [key for key, _ in every]
        assert keys == sorted(set(keys))
        for start in (0, keys[0], keys[len(keys) // 2], keys[-1], keys[-1] + 1):
            behind = [row for row in every if row[0] >= start]
            assert list(pages.numbered_rows(fd, meta, meta.roots[0], start)) == behind
    finally:
        os.close(fd)
