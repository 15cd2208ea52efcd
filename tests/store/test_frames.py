"""The frame codec: whole, cut at every byte, with trailing bytes, and hostile."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.errors import BadRequest, Damaged
from blockvault.store import frames
from blockvault.store.codec import Codec
from tests.store.material import CODEC, block, noise

NONE = Codec("none")

SAMPLES = {
    "one": [b"x"],
    "empty object": [b""],
    "blocks": [block(n) for n in range(10)],
    "incompressible blocks": [noise(n) for n in range(4)],
    "unequal": [b"", b"a", block(1), b"", noise(2, 100)],
    "many": [b"%d" % n for n in range(frames.MAX_OBJECTS)],
}


@pytest.mark.parametrize("codec", [CODEC, NONE], ids=["zstd", "none"])
@pytest.mark.parametrize("name", SAMPLES)
def test_round_trip(name: str, codec: Codec) -> None:
    objects = SAMPLES[name]
    data = frames.encode(objects, codec)
    decoded = frames.decode(memoryview(data))
    assert len(decoded) == len(objects)
    assert list(decoded) == objects
    assert decoded[0] == objects[0]
    assert decoded[len(objects) - 1] == objects[-1]


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=40), st.sampled_from([CODEC, NONE]))
def test_round_trip_of_anything(objects: list[bytes], codec: Codec) -> None:
    assert list(frames.decode(frames.encode(objects, codec))) == objects


def test_the_bytes_are_these() -> None:
    """Changing this test means changing the format."""
    assert frames.encode([b"ab", b"cd"], NONE).hex() == "01000200040000000200000061626364"
    assert frames.encode([b"a", b"bcd"], NONE).hex() == (
        "010002000400000000000000010000000300000061626364"
    )
    assert frames.encode([bytes(4096)], CODEC)[:12].hex() == "010101000010000000100000"


@pytest.mark.parametrize("codec", [CODEC, NONE], ids=["zstd", "none"])
@pytest.mark.parametrize("name", ["blocks", "unequal", "one"])
def test_a_frame_cut_at_any_byte_is_damaged(name: str, codec: Codec) -> None:
    data = frames.encode(SAMPLES[name], codec)
    for cut in range(0, len(data), max(1, len(data) // 300)):
        with pytest.raises(Damaged):
            frames.decode(data[:cut])


@pytest.mark.parametrize("codec", [CODEC, NONE], ids=["zstd", "none"])
def test_trailing_bytes_are_damage(codec: Codec) -> None:
    with pytest.raises(Damaged):
        frames.decode(frames.encode(SAMPLES["blocks"], codec) + b"\0")


def _header(
    version: int = 1, codec: int = 0, count: int = 1, raw_size: int = 4, uniform: int = 4
) -> bytes:
    return struct.pack("<BBHII", version, codec, count, raw_size, uniform)


HOSTILE = {
    "version 0": _header(version=0) + b"abcd",
    "version 2": _header(version=2) + b"abcd",
    "unknown codec": _header(codec=2) + b"abcd",
    "no object": _header(count=0, raw_size=0, uniform=0),
    "too large": _header(raw_size=frames.MAX_RAW + 1, uniform=frames.MAX_RAW + 1),
    "4 GiB": _header(codec=1, raw_size=0xFFFFFFFF, uniform=0xFFFFFFFF),
    "lengths missing": _header(count=0xFFFF, uniform=0),
    "lengths too long": _header(count=2, uniform=0) + struct.pack("<II", 3, 2) + b"abcd",
    "lengths too short": _header(count=2, uniform=0) + struct.pack("<II", 1, 2) + b"abcd",
    "lengths overflow": _header(count=2, raw_size=3, uniform=0)
    + struct.pack("<II", 0xFFFFFFFF, 4)
    + b"abc",
    "uniform does not add up": _header(count=3, raw_size=4, uniform=2) + b"abcd",
    "raw payload short": _header() + b"abc",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_damage(name: str) -> None:
    with pytest.raises(Damaged):
        frames.decode(HOSTILE[name])


@given(st.binary(max_size=80))
def test_any_bytes_decode_or_are_damage(data: bytes) -> None:
    with contextlib.suppress(Damaged):
        list(frames.decode(data))


@given(st.data())
def test_a_changed_byte_decodes_to_as_many_objects_or_is_damage(data: st.DataObject) -> None:
    whole = frames.encode(SAMPLES["unequal"], CODEC)
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        objects = frames.decode(bytes(changed))
    except Damaged:
        return
    assert sum(map(len, objects)) == sum(map(len, SAMPLES["unequal"]))


def test_slots_beyond_the_frame_are_damage() -> None:
    decoded = frames.decode(frames.encode([b"a", b"b"], NONE))
    for slot in (-1, 2, 65535):
        with pytest.raises(Damaged, match="of 2"):
            decoded[slot]


def test_raw_frames_are_sliced_in_place() -> None:
    objects = [noise(n) for n in range(4)]
    view = memoryview(frames.encode(objects, CODEC))
    assert [frames.raw_object(view, slot) for slot in range(4)] == objects
    assert frames.raw_object(view, 4) is None
    assert frames.raw_object(view[:-1], 0) is None
    assert frames.raw_object(view[:5], 0) is None
    assert frames.raw_object(memoryview(frames.encode([block(1)], CODEC)), 0) is None
    assert frames.raw_object(memoryview(frames.encode([b"a", b"bc"], NONE)), 0) is None


def test_too_many_or_too_large_objects_are_refused() -> None:
    for objects in ([], [b""] * (frames.MAX_OBJECTS + 1), [bytes(frames.MAX_RAW), b"x"]):
        with pytest.raises(BadRequest):
            frames.encode(objects, NONE)
    assert len(frames.decode(frames.encode([bytes(frames.MAX_RAW)], CODEC))[0]) == frames.MAX_RAW
