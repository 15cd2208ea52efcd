"""Free pages become holes, a moment at a time, beside writers and readers that lose nothing."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault.ids import object_id
from blockvault.store import freespace, pages, shared
from blockvault.store.codec import Codec
from blockvault.store.env import LmdbStore
from blockvault.store.frames import Frame, encode
from blockvault.store.types import Options

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


@pytest.mark.parametrize("slice_", [0.0, 10.0], ids=["many slices", "one slice"])
def test_dropped_frames_go_back_to_the_file_system(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch, slice_: float
) -> None:
    monkeypatch.setattr(freespace, "SLICE", slice_)
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


def test_commits_between_slices_lose_nothing(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that were free when a slice ended are taken by a commit before the next begins."""
    monkeypatch.setattr(freespace, "SLICE", 0.0)
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
