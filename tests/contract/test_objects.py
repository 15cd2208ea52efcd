"""Objects through every store: readers prove what they return, writers keep what is new."""

from __future__ import annotations

import random
import threading
import weakref

import pytest

from blockvault.errors import Damaged
from blockvault.ids import ZERO_ID, object_id
from blockvault.store import frames, gathering
from blockvault.store.gathering import ObjectWriter
from blockvault.store.objects import ObjectReader
from blockvault.store.types import Frame, Store
from tests.contract.conftest import Make
from tests.store.material import CODEC, OPTIONS, block, framed, noise


def commit(store: Store, made: list[Frame]) -> None:
    with store.write() as writer:
        writer.add_frames(made)


def keep(store: Store, datas: list[bytes]) -> list[bytes]:
    """Store blocks in one go; return their ids."""
    writer = ObjectWriter(store)
    ids = [object_id(data) for data in datas]
    writer.add_blocks(ids, datas)
    commit(store, writer.finish())
    return ids


MIXED = [block(n) for n in range(150)] + [noise(n) for n in range(150)] + [b"short", b""]


def test_everything_that_goes_in_comes_out(store: Store) -> None:
    ids = keep(store, MIXED)
    reader = ObjectReader(store)
    assert [reader.get(oid) for oid in ids] == MIXED
    assert reader.get_many(ids) == dict(zip(ids, MIXED, strict=True))
    assert reader.get_many(ids[:1]) == {ids[0]: MIXED[0]}
    assert reader.get_many([]) == {}
    reader.close()
    assert reader.get_many(reversed(ids + ids)) == dict(zip(ids, MIXED, strict=True))


@pytest.mark.parametrize("compression", ["none", "zstd:1"])
def test_every_compression(make: Make, compression: str) -> None:
    store = make(OPTIONS._replace(compression=compression))
    ids = keep(store, MIXED)
    assert ObjectReader(store).get_many(ids) == dict(zip(ids, MIXED, strict=True))
    with store.read() as reader:
        sizes = sum(len(data) for _, data in reader.frames())
    assert (sizes < 0.6 * sum(map(len, MIXED))) == (compression != "none")


def test_a_reader_goes_with_its_last_user(store: Store) -> None:
    """Else its file for what it has decoded stays open until the garbage collector comes."""
    reader = ObjectReader(store)
    gone = weakref.ref(reader)
    del reader
    assert gone() is None


def test_a_small_cache_changes_nothing(store: Store) -> None:
    ids = keep(store, [block(n) for n in range(300)])
    reader = ObjectReader(store, cache_bytes=1)
    for oid, number in random.Random(1).sample(list(zip(ids, range(300), strict=True)), 100):
        assert reader.get(oid) == block(number)
        assert len(reader._cache._frames) == 1


def test_the_cache_is_bounded(store: Store) -> None:
    ids = keep(store, [block(n) for n in range(1000)])
    reader = ObjectReader(store, cache_bytes=600_000)
    reader.get_many(ids)
    for oid in ids:
        reader.get(oid)
        assert reader._cache._size <= 600_000
        assert reader._cache._size == sum(c.size for c in reader._cache._frames.values())


def test_a_missing_object_is_named(store: Store) -> None:
    reader = ObjectReader(store)
    gone = object_id(b"gone")
    for attempt in (lambda: reader.get(gone), lambda: reader.get_many([gone, object_id(b"x")])):
        with pytest.raises(Damaged, match="is missing") as caught:
            attempt()
        assert caught.value.reason == "object-missing"
    with pytest.raises(Damaged, match=gone.hex()[:12]):
        reader.get(gone)


@pytest.mark.parametrize("make_data", [block, noise], ids=["compressed", "raw"])
def test_a_changed_object_is_never_returned(store: Store, make_data: object) -> None:
    assert callable(make_data)
    good = [make_data(number) for number in range(4)]
    bad = [*good[:2], make_data(77), good[3]]
    frame = Frame(frames.encode(bad, CODEC), tuple(map(object_id, good)))
    commit(store, [frame])
    reader = ObjectReader(store)
    for attempt in (
        lambda: reader.get(frame.ids[2]),
        lambda: reader.get_many(frame.ids),
        lambda: reader.get_many([frame.ids[2]]),
    ):
        with pytest.raises(Damaged, match="not what was stored") as caught:
            attempt()
        assert caught.value.reason == "object-damaged"
    assert reader.get_many(frame.ids[:2]) == dict(zip(frame.ids, good[:2], strict=False))
    assert reader.get(frame.ids[3]) == good[3]


def test_an_index_that_lies_is_noticed_even_when_the_frame_is_cached(store: Store) -> None:
    ids = keep(store, [block(n) for n in range(3)])
    with store.write() as writer:
        place = writer.get("index", ids[0])
        assert place is not None
        writer.put("index", ids[1], place)
    reader = ObjectReader(store)
    assert reader.get(ids[0]) == block(0)
    with pytest.raises(Damaged, match="not what was stored"):
        reader.get(ids[1])


def test_objects_that_were_moved_are_found_again(store: Store) -> None:
    datas = [block(n) for n in range(3)]
    ids = keep(store, datas)
    reader = ObjectReader(store, cache_bytes=1)
    assert reader.get_many(ids) == dict(zip(ids, datas, strict=True))
    keep(store, [block(n) for n in range(10, 13)])
    reader.get(object_id(block(10)))  # the first frame leaves the cache, its places stay known
    with store.write() as writer:
        for oid in ids:
            writer.delete("index", oid)
        writer.drop_frames([1])
        writer.add_frames([framed(datas[::-1])])
    assert [reader.get(oid) for oid in ids] == datas
    assert reader.get_many(ids) == dict(zip(ids, datas, strict=True))


def test_a_place_that_is_known_is_not_looked_up(store: Store, monkeypatch) -> None:
    """A store where no index can be read has to do for what is decoded and known."""
    datas = [block(n) for n in range(12)]
    ids = keep(store, datas)
    reader = ObjectReader(store)
    for at in range(0, 12, 4):
        reader.get_many(ids[at : at + 4])
    reader._hot.clear()
    monkeypatch.delattr(type(store), "read")
    assert reader.get_many(ids) == dict(zip(ids, datas, strict=True))
    reader._hot.clear()
    assert [reader.get(oid) for oid in ids] == datas


def test_a_place_where_something_else_is_means_nothing(store: Store) -> None:
    """Two objects may share a word, and an object may have moved."""
    datas = [block(n) for n in range(12)]
    ids = keep(store, datas)
    reader = ObjectReader(store)
    for wrong in (1 << 16 | 0, 1 << 16 | 0xFFFF, 99 << 16 | 3):
        for oid in ids:
            reader._at_hand.remember(oid, wrong)
        assert [reader.get(oid) for oid in ids] == datas
        reader._hot.clear()
        for oid in ids:
            reader._at_hand.remember(oid, wrong)
        assert reader.get_many(ids) == dict(zip(ids, datas, strict=True))
        reader._hot.clear()


def test_nodes_that_were_just_made_are_there_before_they_are_stored(store: Store) -> None:
    stored, made = [block(n) for n in range(3)], [block(n) for n in range(10, 13)]
    keep(store, stored)
    reader = ObjectReader(store)
    new = {object_id(data): data for data in made}
    reader.keep_made(new)
    assert [reader.get(oid) for oid in new] == made
    every = new | {object_id(data): data for data in stored}
    assert reader.get_many(every) == every
    reader.close()
    with pytest.raises(Damaged, match="missing"):
        reader.get(object_id(made[0]))


def test_only_what_is_new_is_taken(store: Store) -> None:
    keep(store, [block(0), block(1)])
    writer = ObjectWriter(store)
    datas = [block(1), block(2), block(2), bytes(4096), block(3)]
    ids = [ZERO_ID if data == bytes(4096) else object_id(data) for data in datas]
    assert writer.add_blocks(ids, datas) == 2
    assert writer.add_blocks(ids, datas) == 0
    made = writer.finish()
    assert [oid for frame in made for oid in frame.ids] == [object_id(block(n)) for n in (2, 3)]
    assert writer.finish() == []


def test_frames_are_full_and_in_order(store: Store) -> None:
    datas = [noise(n) for n in range(200)]
    ids = [object_id(data) for data in datas]
    writer = ObjectWriter(store)
    for at in range(0, 200, 7):
        writer.add_blocks(ids[at : at + 7], datas[at : at + 7])
    full = writer.take()
    assert [len(frame.ids) for frame in full] == [64, 64, 64]
    rest = writer.finish()
    assert [len(frame.ids) for frame in rest] == [8]
    assert [oid for frame in full + rest for oid in frame.ids] == ids
    commit(store, full + rest)
    assert ObjectReader(store).get_many(ids) == dict(zip(ids, datas, strict=True))


def test_blocks_and_nodes_are_kept_apart(store: Store) -> None:
    writer = ObjectWriter(store)
    nodes = [noise(n, 1024) for n in range(3)]
    for number, node in enumerate(nodes):
        writer.add_blocks([object_id(block(number))], [block(number)])
        assert writer.add(node) == writer.add_node(node) == object_id(node)
    blocks_frame, nodes_frame = writer.finish()
    assert blocks_frame.ids == tuple(object_id(block(number)) for number in range(3))
    assert nodes_frame.ids == tuple(map(object_id, nodes))


def test_the_callers_buffer_may_change_after_the_call(store: Store) -> None:
    buffer = bytearray()
    datas = [noise(n) for n in range(100)]
    ids = [object_id(data) for data in datas]
    buffer += b"".join(datas)
    view = memoryview(buffer)
    writer = ObjectWriter(store)
    writer.add_blocks(ids, [view[at : at + 4096] for at in range(0, len(buffer), 4096)])
    view.release()
    buffer[:] = b""
    commit(store, writer.finish())
    assert ObjectReader(store).get_many(ids) == dict(zip(ids, datas, strict=True))


def test_frames_of_a_failed_commit_can_be_committed_later(store: Store) -> None:
    writer = ObjectWriter(store)
    ids = [object_id(block(1))]
    writer.add_blocks(ids, [block(1)])
    made = writer.finish()

    def fail() -> None:
        with store.write() as transaction:
            transaction.add_frames(made)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert writer.add_blocks(ids, [block(1)]) == 1
    commit(store, made)
    commit(store, writer.finish())
    with store.read() as reader:
        assert len(list(reader.frames())) == 1


def test_objects_taken_are_pending_until_they_are_stored(store: Store) -> None:
    writer = ObjectWriter(store, frame_bytes=4096)
    ids = [object_id(block(number)) for number in range(3)]
    writer.add_blocks(ids[:1], [block(0)])
    first = writer.take()
    assert writer.add_blocks(ids[:2], [block(0), block(1)]) == 1
    with store.write() as transaction:
        transaction.add_frames(first)
        number = transaction.txn_id
    writer.stored(first, number)
    assert writer.add_blocks(ids, [block(0), block(1), block(2)]) == 1
    second = writer.take()
    assert [frame.ids for frame in first + second] == [(oid,) for oid in ids]


def test_after_a_commit_of_its_own_a_collector_need_not_look_again(store: Store) -> None:
    writer = ObjectWriter(store, frame_bytes=4096)
    writer.add_blocks([object_id(block(1))], [block(1)])
    first = writer.take()
    writer.add_blocks([object_id(block(2))], [block(2)])
    with store.write() as transaction:
        transaction.add_frames(first)
        number = transaction.txn_id
    writer.stored(first, number)
    assert [frame.absent_at for frame in writer.take()] == [number]


def test_after_a_commit_of_anybody_else_a_collector_must_look_again(store: Store) -> None:
    writer = ObjectWriter(store, frame_bytes=4096)
    writer.add_blocks([object_id(block(1))], [block(1)])
    first = writer.take()
    writer.add_blocks([object_id(block(2))], [block(2)])
    other = ObjectWriter(store, frame_bytes=4096)
    other.add_blocks([object_id(block(2))], [block(2)])
    commit(store, other.finish())
    with store.write() as transaction:
        transaction.add_frames(first)
        number = transaction.txn_id
    writer.stored(first, number)
    second = writer.take()
    assert [frame.absent_at < number for frame in second] == [True]
    commit(store, second)
    with store.read() as reader:
        assert len(list(reader.frames())) == 2


def test_not_more_than_a_few_frames_wait_uncompressed(store: Store) -> None:
    writer = ObjectWriter(store)
    for at in range(0, 64 * 40, 64):
        datas = [noise(n) for n in range(at, at + 64)]
        writer.add_blocks([object_id(data) for data in datas], datas)
        assert len(writer._sealed) <= gathering.IN_FLIGHT
    assert len(writer.finish()) == 40


def test_several_threads_read_while_one_writes(store: Store) -> None:
    first = [block(n) for n in range(200)] + [noise(n) for n in range(200)]
    ids = keep(store, first)
    wanted = dict(zip(ids, first, strict=True))
    reader = ObjectReader(store, cache_bytes=300_000)
    failures: list[BaseException] = []
    done = threading.Event()

    def read(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not done.is_set():
                oid = rng.choice(ids)
                assert reader.get(oid) == wanted[oid]
                some = rng.sample(ids, 50)
                assert reader.get_many(some) == {i: wanted[i] for i in some}
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1000, 1030):
        keep(store, [block(number), noise(number)])
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_several_threads_add_to_one_writer(store: Store) -> None:
    writer = ObjectWriter(store)
    datas = [noise(n, 2000) for n in range(800)]
    ids = [object_id(data) for data in datas]

    def add(start: int) -> None:
        for at in range(start, 800, 8):
            writer.add_blocks(ids[at : at + 8], datas[at : at + 8])

    threads = [threading.Thread(target=add, args=(start,)) for start in (0, 0, 4, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = writer.finish()
    assert sorted(oid for frame in made for oid in frame.ids) == sorted(ids)
    commit(store, made)
    assert ObjectReader(store).get_many(ids) == dict(zip(ids, datas, strict=True))
