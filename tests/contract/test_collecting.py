"""What every store does for a collection: dead places, moved frames, gaps in the log."""

from __future__ import annotations

import pytest

from blockvault.encoding import pack
from blockvault.errors import BadRequest
from blockvault.ids import object_id
from blockvault.store import frames, tables
from blockvault.store.gathering import ObjectWriter
from blockvault.store.objects import ObjectReader
from blockvault.store.types import Store
from tests.store.material import block, framed

A, B, C, D = (block(number) for number in range(4))
IDS = [object_id(data) for data in (A, B, C, D)]


def places(store: Store) -> list[tuple[int, int] | None]:
    with store.read() as reader:
        return [
            None if place is None else tables.split_location(place) for place in reader.locate(IDS)
        ]


def test_condemned_objects_are_stored_but_not_known(store: Store) -> None:
    with store.write() as writer:
        writer.add_frames([framed([A, B]), framed([C])])
        writer.set_dead(1, 0b10)
    with store.read() as reader:
        assert reader.dead_slots(1) == 0b10
        assert reader.dead_slots(2) == 0
        assert reader.all_dead_slots() == {1: 0b10}
        assert reader.known(IDS) == set(IDS[:3]), "nothing is condemned until it is said"
    with store.write() as writer:
        writer.condemn(True)
    with store.read() as reader:
        assert reader.known(IDS) == {IDS[0], IDS[2]}
        assert reader.indexed(IDS) == set(IDS[:3])
    assert ObjectReader(store).get(IDS[1]) == B
    with store.write() as writer:
        writer.condemn(False)
        writer.set_dead(1, 0)
    with store.read() as reader:
        assert reader.known(IDS) == set(IDS[:3])
        assert reader.get(tables.DEAD, tables.u64_key(1)) is None


def test_a_condemned_object_is_stored_anew_by_who_needs_it(store: Store) -> None:
    with store.write() as writer:
        writer.add_frames([framed([A, B])])
        writer.set_dead(1, 0b10)
        writer.condemn(True)
    objects = ObjectWriter(store)
    assert objects.add_blocks(IDS[:3], [A, B, C]) == 2
    with store.write() as writer:
        writer.add_frames(objects.finish())
    assert places(store) == [(1, 0), (2, 0), (2, 1), None]
    with store.read() as reader:
        assert reader.known(IDS) == set(IDS[:3])
    reader_ = ObjectReader(store)
    assert reader_.get_many(IDS[:3]) == dict(zip(IDS[:3], (A, B, C), strict=True))


def test_moved_frames_take_the_index_with_them(store: Store) -> None:
    with store.write() as writer:
        writer.add_frames([framed([A, B]), framed([C])])
        writer.move_frames([framed([B, C])])
        writer.unindex([IDS[0]])
        writer.put(tables.RUNS, IDS[2], b"digest")
        writer.drop_frames([1, 2])
    assert places(store) == [None, (3, 0), (3, 1), None]
    assert ObjectReader(store).get_many(IDS[1:3]) == {IDS[1]: B, IDS[2]: C}
    with store.write() as writer:
        writer.unindex([IDS[2], IDS[3]])
        assert writer.get(tables.RUNS, IDS[2]) is None
    assert places(store) == [None, (3, 0), None, None]


def test_frame_heads_tell_counts_without_the_frames(store: Store) -> None:
    with store.write() as writer:
        writer.add_frames([framed([A, B]), framed([C]), framed([D])])
    with store.read() as reader:
        heads = reader.frame_heads(1, 2)
        assert [number for number, _, _ in heads] == [1, 2]
        assert [frames.object_count(head) for _, head, _ in heads] == [2, 1]
        assert [length for _, _, length in heads] == [len(reader.frame(n) or b"") for n in (1, 2)]
        assert reader.frame_heads(4, 9) == []


def append(store: Store, *counts: int) -> None:
    for count in counts:
        with store.write() as writer:
            writer.append(pack([[19, 0, count]] * count), count, 1000 + count)


def test_a_gap_stands_for_records_and_keeps_their_chain(store: Store) -> None:
    append(store, 1, 2, 3, 1)
    with store.read() as reader:
        before = list(reader.records())
        last = reader.last()
    with store.write() as writer:
        assert writer.forget_records(2, 7, 10) == 2
    with store.read() as reader:
        after = list(reader.records())
        assert reader.last() == last
        assert [(r.first_seq, r.count, r.pruned) for r in after] == [
            (1, 1, False), (2, 5, True), (7, 1, False),
        ]  # fmt: skip
        assert [r.chain for r in after] == [before[i].chain for i in (0, 2, 3)]
        assert after[1].time_us == before[2].time_us
        found = reader.record(4)
        assert found is not None
        assert (found.first_seq, found.pruned) == (2, True)
    append(store, 1)
    with store.read() as reader:
        assert [r.first_seq for r in reader.records(7)] == [7, 8]


def test_gaps_grow_in_small_steps_and_join(store: Store) -> None:
    append(store, *[1] * 10)
    steps = []
    while True:
        with store.write() as writer:
            steps.append(writer.forget_records(3, 9, 3))
        if steps[-1] == 1:
            break
    assert steps == [3, 3, 2, 1]
    with store.read() as reader:
        assert [(r.first_seq, r.count) for r in reader.records()] == [
            (1, 1), (2, 1), (3, 6), (9, 1), (10, 1),
        ]  # fmt: skip
    with store.write() as writer:
        assert writer.forget_records(2, 10, 100) == 3
    with store.read() as reader:
        assert [(r.first_seq, r.count) for r in reader.records()] == [(1, 1), (2, 8), (10, 1)]


def test_only_whole_records_are_forgotten(store: Store) -> None:
    append(store, 2, 2)
    with pytest.raises(BadRequest), store.write() as writer:
        writer.forget_records(2, 3, 10)
    with pytest.raises(BadRequest), store.write() as writer:
        writer.forget_records(1, 4, 10)
    with store.read() as reader:
        assert [r.pruned for r in reader.records()] == [False, False]


def test_a_moment_in_the_log_is_found_by_bisection(store: Store) -> None:
    append(store, 1, 2, 3, 3, 9)
    times = {1: 1001, 2: 1002, 4: 1003, 10: 1009}
    with store.write() as writer:
        writer.forget_records(2, 7, 10)
    with store.read() as reader:
        assert reader.record_at(0) == 1
        assert reader.record_at(1001) == 1
        assert reader.record_at(times[10]) == 10
        assert reader.record_at(1003) == 2, "a gap has the time of its last record"
        assert reader.record_at(1010) == reader.last().seq + 1
        assert reader.chain_before(10) == (reader.record(9) or pytest.fail("no record")).chain
