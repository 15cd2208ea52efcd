"""What a reader keeps of what it has read."""

from __future__ import annotations

import pytest

from blockvault.errors import Damaged
from blockvault.ids import object_id
from blockvault.store.caches import (
    AS_WRITTEN,
    PACKED_TIMES,
    Expected,
    FrameCache,
    ObjectCache,
    PlaceCache,
    checked,
)
from blockvault.store.frames import Objects
from blockvault.store.tables import MAX_PLACE

BLOCK = 4096
OF_TWO_WORDS = ("010000000042", "020000000042", "030000000042", "011111111142")
"""Beginnings of ids: bits of the last bytes name two words, the first byte is kept in it."""


def frame(size: int) -> Objects:
    return Objects(bytes(size), size // BLOCK, BLOCK, ())


def test_the_frames_that_were_used_last_are_kept() -> None:
    cache = FrameCache(3 * BLOCK)
    for number in (1, 2, 3):
        cache.put(number, frame(BLOCK))
    assert cache.get(1) is not None
    cache.put(4, frame(BLOCK))
    assert [number for number in range(1, 5) if cache.get(number)] == [1, 3, 4]


def test_a_frame_that_is_put_again_counts_once() -> None:
    cache = FrameCache(3 * BLOCK)
    for number in (1, 2, 2, 2, 3):
        cache.put(number, frame(BLOCK))
    assert cache.get(1) is not None


def test_a_frame_that_is_too_large_alone_is_kept() -> None:
    cache = FrameCache(BLOCK)
    cache.put(1, frame(4 * BLOCK))
    assert cache.get(1) is not None


def test_packed_frames_get_more_room() -> None:
    size = 2 * AS_WRITTEN
    cache = FrameCache(4 * size // PACKED_TIMES)
    for number in range(5):
        cache.put(number, frame(size))
    assert [number for number in range(5) if cache.get(number)] == [1, 2, 3, 4]


def test_objects_make_room_in_the_order_in_which_they_came() -> None:
    cache = ObjectCache(2 * BLOCK)
    ids = [bytes([number]) * 32 for number in range(3)]
    for oid in ids:
        cache.put(oid, bytes(BLOCK))
    assert cache.get(ids[0]) is None
    assert cache.get_many(ids) == dict.fromkeys(ids[1:], bytes(BLOCK))
    cache.clear()
    assert cache.get_many(ids) == {}


def test_an_object_has_two_words_and_a_word_one_object() -> None:
    cache = PlaceCache(1 << 8)
    one, two, three, alike = (bytes.fromhex(text) + bytes(26) for text in OF_TWO_WORDS)
    assert cache.get(one) == 0
    cache.put(one, MAX_PLACE)
    assert (cache.get(one), cache.get(two)) == (MAX_PLACE, 0)
    assert cache.get(alike) == MAX_PLACE, "eight bits are the same: its bytes have to be proved"
    cache.put(two, 1 << 16)
    assert (cache.get(one), cache.get(two)) == (MAX_PLACE, 1 << 16)
    cache.put(three, 2 << 16)
    assert (cache.get(one), cache.get(two), cache.get(three)) == (0, 1 << 16, 2 << 16)
    cache.put(two, 3 << 16)
    assert (cache.get(two), cache.get(three)) == (3 << 16, 2 << 16), "it has moved"


def test_places_are_known_again() -> None:
    cache = PlaceCache(1 << 12)
    places = {object_id(b"%d" % number): number << 16 | 7 for number in range(1, 1000)}
    for oid, place in places.items():
        cache.put(oid, place)
    right = [oid for oid, place in places.items() if cache.get(oid) == place]
    assert len(right) > 960, "with one word each it would be 890"


def test_what_is_expected() -> None:
    ids = [object_id(b"%d" % number) for number in range(2000)]
    expected = Expected(1 << 14)
    assert expected.add(b"".join(ids[:1000]))
    assert all(oid in expected for oid in ids[:1000])
    assert sum(oid in expected for oid in ids[1000:]) < 100


def test_too_much_that_is_expected_is_forgotten() -> None:
    ids = [object_id(b"%d" % number) for number in range(3000)]
    expected = Expected(1 << 10)
    kept = []
    for at in range(0, 3000, 100):
        kept.append(expected.add(b"".join(ids[at : at + 100])))
        assert all(oid in expected for oid in ids[at : at + 100])
    assert kept.count(False) == 2, "at 1,100 and 2,100"
    assert sum(oid in expected for oid in ids) < 3000


def test_a_frame_proves_what_it_gives() -> None:
    cached = FrameCache(BLOCK).put(1, frame(BLOCK))
    oid = object_id(bytes(BLOCK))
    assert cached.proved(0, oid) == cached.get(0, oid) == bytes(BLOCK)
    assert cached.proved(1, oid) is None
    assert cached.proved(0, object_id(b"other")) is None
    with pytest.raises(Damaged, match="not what was stored"):
        cached.get(0, object_id(b"other"))


def test_a_frame_tells_what_it_holds() -> None:
    blocks = [bytes([number]) * BLOCK for number in range(3)]
    cached = FrameCache(BLOCK).put(1, Objects(b"".join(blocks), 3, BLOCK, ()))
    assert [cached.id_of(slot) for slot in range(3)] == list(map(object_id, blocks))
    assert cached.ids == list(map(object_id, blocks))
    assert cached.proved(2, object_id(blocks[2])) == blocks[2]
    assert cached.proved(2, object_id(blocks[1])) is None


def test_an_object_is_what_its_id_says() -> None:
    assert checked(b"content", object_id(b"content")) == b"content"
    with pytest.raises(Damaged, match="not what was stored") as caught:
        checked(b"other", object_id(b"content"))
    assert caught.value.reason == "object-damaged"
