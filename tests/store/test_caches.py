"""What a reader keeps of what it has read."""

from __future__ import annotations

import pytest

from blockvault.errors import Damaged
from blockvault.ids import object_id
from blockvault.store.caches import AS_WRITTEN, FrameCache, ObjectCache, checked
from blockvault.store.frames import Objects

BLOCK = 4096


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


def test_an_object_is_what_its_id_says() -> None:
    assert checked(b"content", object_id(b"content")) == b"content"
    with pytest.raises(Damaged, match="not what was stored") as caught:
        checked(b"other", object_id(b"content"))
    assert caught.value.reason == "object-damaged"
