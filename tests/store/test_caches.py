"""What a reader keeps of what it has read."""

from __future__ import annotations

import pytest

from blockvault.errors import Damaged
from blockvault.ids import object_id
from blockvault.store.caches import AS_WRITTEN, FrameCache, ObjectCache, PlaceCache, checked
from blockvault.store.frames import Objects
from blockvault.store.tables import MAX_PLACE

BLOCK = 4096
OF_ONE_WORD = ("0100000042", "0200000042", "0111111142")
"""Beginnings of ids: the last byte names the word, the first one is kept in it."""


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
    cache = FrameCache(2 * size)
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


def test_a_word_is_for_one_object_at_a_time() -> None:
    cache = PlaceCache(1 << 8)
    one, other, alike = (bytes.fromhex(text) + bytes(27) for text in OF_ONE_WORD)
    assert cache.get(one) == 0
    cache.put(one, MAX_PLACE)
    assert (cache.get(one), cache.get(other)) == (MAX_PLACE, 0)
    assert cache.get(alike) == MAX_PLACE, "eight bits are the same: its bytes have to be proved"
    cache.put(other, 1 << 16)
    assert (cache.get(one), cache.get(other)) == (0, 1 << 16)


def test_places_are_known_again() -> None:
    cache = PlaceCache(1 << 16)
    places = {object_id(b"%d" % number): number << 16 | 7 for number in range(1, 1000)}
    for oid, place in places.items():
        cache.put(oid, place)
    right = [oid for oid, place in places.items() if cache.get(oid) == place]
    assert len(right) > 950, "a few have been put where others were"


def test_a_frame_proves_what_it_gives() -> None:
    cached = FrameCache(BLOCK).put(1, frame(BLOCK))
    oid = object_id(bytes(BLOCK))
    assert cached.proved(0, oid) == cached.get(0, oid) == bytes(BLOCK)
    assert cached.proved(1, oid) is None
    assert cached.proved(0, object_id(b"other")) is None
    with pytest.raises(Damaged, match="not what was stored"):
        cached.get(0, object_id(b"other"))


def test_an_object_is_what_its_id_says() -> None:
    assert checked(b"content", object_id(b"content")) == b"content"
    with pytest.raises(Damaged, match="not what was stored") as caught:
        checked(b"other", object_id(b"content"))
    assert caught.value.reason == "object-damaged"
