"""What every store does with frames and the index of their objects."""

from __future__ import annotations

import pytest

from blockvault.errors import BadRequest
from blockvault.ids import object_id
from blockvault.store import frames, tables
from blockvault.store.types import Store
from tests.store.material import block, framed, noise, placed

A, B, C, D = (block(number) for number in range(4))


def read(store: Store, data: bytes) -> bytes:
    """The object, followed through the index by hand."""
    with store.read() as reader:
        place = reader.locate([object_id(data)])[0]
        assert place is not None
        number, slot = tables.split_location(place)
        encoded = reader.frame(number)
        assert encoded is not None
        found = reader.find(object_id(data))
        assert found is not None
        assert found[0] == place
        assert bytes(found[1]) == encoded
        return frames.decode(encoded)[slot]


def numbers(store: Store) -> list[int]:
    with store.read() as reader:
        return [number for number, _ in reader.frames()]


def test_many_objects_are_found_at_once(store: Store) -> None:
    """So many that a store may read its index instead of asking it for each."""
    datas = [b"%d" % number for number in range(6000)]
    ids = [object_id(data) for data in datas]
    with store.write() as writer:
        for at in range(0, 5000, 500):
            writer.add_frames([framed(datas[at : at + 500])])
    with store.read() as reader:
        places = reader.locate(ids)
        few = [reader.locate([oid])[0] for oid in ids[::97]]
        assert reader.indexed(ids) == set(ids[:5000])
        assert sorted(placed(reader, ids)) == sorted(places[:5000])
        assert sorted(placed(reader, ids[4990:5010])) == places[4990:5000]
        assert reader.places(0, set()) == []
    assert places[5000:] == [None] * 1000
    assert places[::97] == few
    assert places[:5000] == [
        tables.location(1 + number // 500, number % 500) for number in range(5000)
    ]


def test_objects_are_found_where_the_index_says(store: Store) -> None:
    with store.write() as writer:
        writer.add_frames([framed([A, B]), framed([C])])
    with store.write() as writer:
        writer.add_frames([framed([D])])
    assert [read(store, data) for data in (A, B, C, D)] == [A, B, C, D]
    assert numbers(store) == [1, 2, 3]
    with store.read() as reader:
        assert list(reader.frames(2)) == [(n, reader.frame(n)) for n in (2, 3)]
        assert list(reader.frames(4)) == []
        assert [reader.frame_numbers(*each) for each in ((0, 2), (2, 9), (4, 9))] == [
            [1, 2], [2, 3], [],
        ]  # fmt: skip
        assert [reader.stands(tables.FRAMES, n) for n in (1, 3, 4)] == [True, True, False]


def test_what_is_not_there_is_none(store: Store) -> None:
    with store.read() as reader:
        assert reader.locate([object_id(A)]) == [None]
        assert reader.locate([]) == []
        assert reader.find(object_id(A)) is None
        assert reader.indexed([]) == set()
        for number in (-1, 0, 1, 1 << 48, 1 << 70):
            assert reader.frame(number) is None
            assert reader.frame_view(number) is None


def test_locate_answers_in_the_order_of_the_question(store: Store) -> None:
    with store.write() as writer:
        writer.add_frames([framed([A, B, C])])
    ids = [object_id(data) for data in (C, D, A, C, B)]
    with store.read() as reader:
        places = reader.locate(ids)
        assert [place and tables.split_location(place) for place in places] == [
            (1, 2), None, (1, 0), (1, 2), (1, 1),
        ]  # fmt: skip
        assert reader.indexed(ids) == {object_id(data) for data in (A, B, C)}


def test_an_object_that_is_known_keeps_its_place(store: Store) -> None:
    with store.write() as writer:
        writer.add_frames([framed([A, B])])
        writer.add_frames([framed([B, C])])
    with store.read() as reader:
        places = reader.locate([object_id(data) for data in (A, B, C)])
    assert places == [tables.location(1, 0), tables.location(1, 1), tables.location(2, 1)]


def test_a_frame_of_known_objects_is_not_stored(store: Store) -> None:
    for _ in range(2):
        with store.write() as writer:
            writer.add_frames([framed([A, B]), framed([B, A]), framed([A])])
    assert numbers(store) == [1]


def test_no_frames_are_no_change(store: Store) -> None:
    with store.write() as writer:
        writer.add_frames([])
    assert numbers(store) == []


def test_frame_numbers_are_never_reused(store: Store) -> None:
    with store.write() as writer:
        writer.add_frames([framed([A]), framed([B]), framed([C])])
    with store.write() as writer:
        writer.drop_frames([2, 3, 99])
        for data in (B, C):
            writer.delete("index", object_id(data))
    assert numbers(store) == [1]
    with store.write() as writer:
        writer.add_frames([framed([B])])
    with store.write() as writer:
        writer.add_frames([framed([D])])
    assert numbers(store) == [1, 4, 5]
    assert [read(store, data) for data in (A, B, D)] == [A, B, D]
    with store.write() as writer:
        writer.drop_frames([1, 4, 5])
        writer.clear("index")
        writer.add_frames([framed([A])])
    assert numbers(store) == [6]


def test_many_frames_at_once(store: Store) -> None:
    objects = [noise(number, 300) for number in range(3000)]
    with store.write() as writer:
        writer.add_frames([framed(objects[at : at + 100]) for at in range(0, 3000, 100)])
    for data in objects[::97]:
        assert read(store, data) == data
    with store.read() as reader:
        assert None not in reader.locate([object_id(data) for data in objects])


def test_an_index_row_that_points_nowhere_finds_nothing(store: Store) -> None:
    with store.write() as writer:
        for number, place in enumerate([0, 1, tables.location(7, 0), tables.MAX_PLACE]):
            writer.put("index", bytes([number]) * 32, tables.pack_location(place))
    with store.read() as reader:
        for number in range(4):
            assert reader.find(bytes([number]) * 32) is None


def test_index_rows_are_rows(store: Store) -> None:
    with store.write() as writer:
        writer.add_frames([framed([A])])
        assert writer.get("index", object_id(A)) == tables.pack_location(tables.location(1, 0))
        assert [key for key, _ in writer.scan("index")] == [object_id(A)]
        with pytest.raises(BadRequest):
            writer.get("frames", b"1")


IDS = sorted(
    {bytes([first]) + bytes([n]) * 31 for first in (0, 1, 9, 254, 255) for n in (0, 5, 255)}
)
BETWEEN = [b"\0", b"\1", b"\5", IDS[4] + b"\0", IDS[7][:9], b"\xff", b"\xff" * 33]


def index_rows(store: Store) -> list[tuple[bytes, bytes]]:
    rows = [(oid, tables.pack_location(tables.location(3, n))) for n, oid in enumerate(IDS)]
    with store.write() as writer:
        for oid, place in reversed(rows):
            writer.put("index", oid, bytes(8))
            writer.put("index", oid, place)
    return rows


@pytest.mark.parametrize("start", [b"", IDS[0], IDS[8], IDS[-1], *BETWEEN], ids=bytes.hex)
def test_the_index_is_scanned_like_any_table(store: Store, start: bytes) -> None:
    rows = index_rows(store)
    with store.read() as reader, store.write() as writer:
        for stop in (None, IDS[0], IDS[8], IDS[-1], *BETWEEN):
            wanted = [row for row in rows if row[0] >= start and (stop is None or row[0] < stop)]
            for transaction in (reader, writer):
                assert list(transaction.scan("index", start, stop)) == wanted
                assert list(transaction.scan("index", start, stop, reverse=True)) == wanted[::-1]


def test_index_rows_are_replaced_and_deleted(store: Store) -> None:
    rows = index_rows(store)
    with store.write() as writer:
        assert writer.get("index", IDS[3]) == rows[3][1]
        assert writer.delete("index", IDS[3])
        assert not writer.delete("index", IDS[3])
        assert writer.get("index", IDS[3]) is None
        assert list(writer.scan("index")) == rows[:3] + rows[4:]
        writer.clear("index")
        assert list(writer.scan("index")) == []
