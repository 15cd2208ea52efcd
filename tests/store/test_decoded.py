"""The file of decoded frames: what small reads decode is found again, proved, and bounded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.errors import Damaged
from blockvault.ids import object_id
from blockvault.store import athand, filesystem, frames
from blockvault.store.athand import Telling
from blockvault.store.decoded import ADMITTED, LARGEST, LEAVES_ADMITTED, DecodedFile
from blockvault.store.env import LmdbStore
from blockvault.store.frames import Objects
from blockvault.store.gathering import ObjectWriter
from blockvault.store.objects import ObjectReader
from blockvault.store.tables import location, pack_location
from blockvault.store.types import Options

BLOCK = 4096


def block(number: int) -> bytes:
    return b"%d " % number * (BLOCK // 8) + bytes(BLOCK - BLOCK // 8 * len(b"%d " % number))


def frame(first: int, count: int = LARGEST // BLOCK) -> Objects:
    return Objects(b"".join(content(first + n) for n in range(count)), count, BLOCK, ())


def content(number: int) -> bytes:
    return b"%08d" % number * (BLOCK // 8)


ALL = range(LARGEST // BLOCK)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[DecodedFile]:
    file = DecodedFile(tmp_path, 3 * LARGEST)
    yield file
    file.close()


def slots_of(file: DecodedFile, number: int, first: int) -> list[int]:
    """The objects of ``frame(first)`` that are there, each of which is right."""
    there = {slot: file.get(number, slot) for slot in range(2 * len(ALL))}
    found = {slot: data for slot, data in there.items() if data is not None}
    assert all(data == content(first + slot) for slot, data in found.items())
    return list(found)


def test_objects_come_back(kept: DecodedFile, tmp_path: Path) -> None:
    kept.put(7, frame(100), ALL)
    assert slots_of(kept, 7, 100) == list(ALL)
    assert kept.get(8, 0) is None
    assert list(tmp_path.iterdir()) == [], "it has no name"


def test_only_some_objects_of_a_frame(kept: DecodedFile) -> None:
    kept.put(7, frame(100), [63, 5, 9])
    assert slots_of(kept, 7, 100) == [5, 9, 63]
    assert os.fstat(kept._ring.file.fileno()).st_size == 3 * BLOCK
    kept.put(7, frame(100), [5, 63])
    assert os.fstat(kept._ring.file.fileno()).st_size == 3 * BLOCK, "they are there already"
    kept.put(7, frame(100), [0, 5])
    assert slots_of(kept, 7, 100) == [0, 5, 9, 63]


def test_the_oldest_make_room(kept: DecodedFile) -> None:
    for number in range(1, 6):
        kept.put(number, frame(number * 100), ALL)
    there = [number for number in range(1, 6) if slots_of(kept, number, number * 100)]
    assert there == [3, 4, 5]


def test_few_come_in_when_it_is_full(kept: DecodedFile) -> None:
    assert all(kept.wants(frame(0)) for _ in range(9))
    for number in range(1, 4):
        kept.put(number, frame(number), ALL)
    assert sum(kept.wants(frame(0)) for _ in range(5 * ADMITTED)) == 5


def test_fewer_leaves_come_in_when_it_is_full(kept: DecodedFile) -> None:
    leaf = bytes(LARGEST // 2)
    for number in range(6):
        assert kept.wants_leaf(len(leaf))
        kept.put_leaf(bytes([number]) * 32, [leaf], b"%d" % number)
    assert kept.get_leaf(bytes([5]) * 32) == (leaf, b"5")
    assert sum(kept.wants_leaf(len(leaf)) for _ in range(3 * LEAVES_ADMITTED)) == 3
    kept.put(1, frame(0), ALL)
    there = [number for number in range(6) if kept.get_leaf(bytes([number]) * 32)]
    assert there == [2, 3, 4, 5], "a frame took the room of two"


@given(
    limit=st.integers(LARGEST, 3 * LARGEST),
    puts=st.lists(
        st.tuples(st.integers(1, 9), st.sets(st.integers(0, 63), min_size=1)), max_size=60
    ),
)
def test_what_was_put_last_is_there_and_all_is_right(
    limit: int, puts: list[tuple[int, set[int]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = DecodedFile(Path(folder), limit)
        for at, (number, slots) in enumerate(puts):
            file.put(number, frame(number * 100), slots)
            assert slots <= set(slots_of(file, number, number * 100)), at
        assert os.fstat(file._ring.file.fileno()).st_size <= limit
        for number in range(1, 10):
            slots_of(file, number, number * 100)
        file.close()


def test_what_is_not_worth_it(kept: DecodedFile) -> None:
    assert kept.wants(frame(0))
    assert not kept.wants(frame(0, 2))
    assert not kept.wants(frame(0, LARGEST // BLOCK + 1))
    assert not kept.wants(Objects(bytes(LARGEST), 2, 0, (1000, LARGEST)))


def test_a_disk_that_is_full_ends_it(kept: DecodedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.put(1, frame(0), ALL)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    kept.put(2, frame(100), ALL)
    monkeypatch.undo()
    assert not kept.wants(frame(0))
    kept.put(3, frame(200), ALL)
    assert kept.get(1, 0) is not None
    assert kept.get(2, 0) is kept.get(3, 0) is None


def test_a_write_that_was_cut_short_is_none(
    kept: DecodedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: BLOCK)
    kept.put(1, frame(0), ALL)
    assert kept.get(1, 0) is None


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Let another thread act between the moment room is taken and the write to it."""
    write = os.pwritev

    def after_that(*arguments: Any) -> int:
        monkeypatch.setattr(os, "pwritev", write)
        act()
        return write(*arguments)

    monkeypatch.setattr(os, "pwritev", after_that)


def test_a_frame_that_comes_twice_at_once_takes_room_once(
    kept: DecodedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, lambda: kept.put(1, frame(0), ALL))
    kept.put(1, frame(0), ALL)
    assert slots_of(kept, 1, 0) == list(ALL)
    assert os.fstat(kept._ring.file.fileno()).st_size == LARGEST


def test_what_lost_its_room_before_it_was_written_is_not_there(
    kept: DecodedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        for number in range(2, 5):
            kept.put(number, frame(number * 100), ALL)

    meanwhile(monkeypatch, fill)
    kept.put(1, frame(0), ALL)
    assert kept.get(1, 0) is None


def test_it_is_closed_when_the_last_writer_is_done(
    kept: DecodedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, kept.close)
    kept.put(1, frame(0), ALL)
    assert kept._ring.file.closed
    assert kept.get(1, 0) is None
    kept.put(2, frame(100), ALL)
    assert not kept.wants(frame(0))


def test_a_small_disk_gets_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "FREE_SHARE", 1 << 60)
    file = DecodedFile(tmp_path, 1 << 40)
    assert not file.wants(frame(0))
    file.put(1, frame(0), ALL)
    assert file.get(1, 0) is None
    file.close()


@pytest.fixture(params=["zstd:3", "none"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LmdbStore]:
    """Of compressed frames, and of raw ones, which small reads keep as well."""
    options = Options(b"v" * 16, BLOCK, request.param)
    with LmdbStore.create(tmp_path / "v", options) as made:
        writer = ObjectWriter(made)
        blocks = [block(number) for number in range(256)]
        writer.add_blocks([object_id(data) for data in blocks], blocks)
        with made.write() as transaction:
            transaction.add_frames(writer.finish())
        yield made


@pytest.fixture
def reader(store: LmdbStore, tmp_path: Path) -> Iterator[ObjectReader]:
    """Keeps what small reads decode in the file, and hardly a frame in memory."""
    made = ObjectReader(store, cache_bytes=0)
    made.keep_decoded(tmp_path, 8 * LARGEST)
    yield made
    made.close()


def file_of(reader: ObjectReader) -> DecodedFile:
    assert reader._at_hand._file is not None
    return reader._at_hand._file


def test_small_reads_decode_a_frame_once(
    reader: ObjectReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    decodes = counted(monkeypatch)
    for _ in range(2):
        for number in range(255, -1, -37):
            assert reader.get(object_id(block(number))) == block(number)
        wanted = {object_id(block(number)): block(number) for number in range(0, 256, 41)}
        assert reader.get_many(wanted) == wanted
    assert len(decodes) <= 4, "four frames"


def test_a_file_that_is_altered_changes_nothing(reader: ObjectReader) -> None:
    wanted = {object_id(block(number)): block(number) for number in range(0, 256, 41)}
    assert reader.get_many(wanted) == wanted
    file = file_of(reader)
    assert file._ring._where
    descriptor = file._ring.file.fileno()
    os.pwrite(descriptor, b"?" * os.fstat(descriptor).st_size, 0)
    assert reader.get_many(wanted) == wanted
    assert all(reader.get(oid) == data for oid, data in wanted.items())


def told() -> Telling:
    """A tree of which all has been told."""
    telling = Telling(1)
    telling.told.add(0)
    return telling


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets one entry for each frame that is decoded."""
    decodes: list[int] = []
    decode = frames.decode
    monkeypatch.setattr(frames, "decode", lambda data: decodes.append(1) or decode(data))
    return decodes


def test_of_an_old_frame_only_what_is_expected_is_kept(
    reader: ObjectReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = [object_id(block(number)) for number in range(3, 256, 5)]
    reader.expect(living)
    tree = told()
    assert reader.listen(tree)
    decodes = counted(monkeypatch)
    for oid in living:
        reader.get(oid)
    file = file_of(reader)
    few = len(living) + 4  # something else may seem to be expected
    assert len(living) * BLOCK <= os.fstat(file._ring.file.fileno()).st_size <= few * BLOCK
    assert len(decodes) == 4, "four frames"
    assert reader.get(object_id(block(77))) == block(77), "what nobody expects is there too"


def test_one_look_up_finds_what_is_expected_of_an_old_frame(
    store: LmdbStore, reader: ObjectReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = range(0, 64, 5)
    reader.expect(object_id(block(number)) for number in living)
    tree = told()
    reader.listen(tree)
    reader.get(object_id(block(5)))
    monkeypatch.setattr(store, "read", lambda: pytest.fail("it looked into the index"))
    for number in living:
        assert reader.get(object_id(block(number))) == block(number)


def test_a_frame_of_which_most_is_expected_is_kept_whole(reader: ObjectReader) -> None:
    reader.expect(object_id(block(number)) for number in range(40))
    tree = told()
    reader.listen(tree)
    reader.get(object_id(block(3)))
    file = file_of(reader)
    assert os.fstat(file._ring.file.fileno()).st_size == LARGEST


@pytest.mark.parametrize("also", ["nobody", "one who has not told all", "one who never will"])
def test_all_is_kept_as_long_as_more_may_be_expected(reader: ObjectReader, also: str) -> None:
    reader.expect(object_id(block(number)) for number in range(0, 64, 8))
    trees = {
        "nobody": [],
        "one who has not told all": [told(), Telling(3)],
        "one who never will": [told(), Telling(None)],
    }[also]
    assert all(map(reader.listen, trees))
    reader.get(object_id(block(3)))
    file = file_of(reader)
    assert os.fstat(file._ring.file.fileno()).st_size == LARGEST
    del trees[1:]
    reader.get(object_id(block(100)))
    few = LARGEST + (LARGEST if also == "nobody" else 4 * BLOCK)
    assert LARGEST < os.fstat(file._ring.file.fileno()).st_size <= few, "who is gone wants nothing"


def test_what_is_too_much_has_to_be_told_again(
    store: LmdbStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(athand, "EXPECTED", 1 << 8)
    reader = ObjectReader(store)
    reader.keep_decoded(tmp_path, 8 * LARGEST)
    tree = told()
    reader.listen(tree)
    ids = [object_id(block(number)) for number in range(256)]
    reader.expect(ids)
    assert tree.done
    reader.expect(ids[:1])
    assert not tree.done
    reader.close()


@pytest.mark.parametrize("all_told", [False, True])
def test_a_place_beyond_the_frame_is_damage(
    store: LmdbStore, reader: ObjectReader, *, all_told: bool
) -> None:
    tree = told()
    assert not all_told or reader.listen(tree)
    oid = object_id(block(3))
    with store.write() as writer:
        writer.put("index", oid, pack_location(location(1, 999)))
    with pytest.raises(Damaged, match="points at object 999"):
        reader.get(oid)
    with pytest.raises(Damaged, match="points at object 999"):
        reader.get_many([oid, object_id(block(9))])


def test_nobody_listens_without_a_file(store: LmdbStore) -> None:
    reader = ObjectReader(store)
    assert not reader.listen(told())
    reader.close()
