"""Compression settings, and payloads that lie about themselves."""

from __future__ import annotations

import tracemalloc

import pytest
import zstandard

from blockvault.errors import BadRequest, Damaged
from blockvault.store import codec
from blockvault.store.codec import RAW, ZSTD, Codec, decompress
from tests.store.material import block, noise

LIMIT = 1 << 20


@pytest.mark.parametrize(
    "spec",
    ["", "zstd", "zstd:", "zstd:0", "zstd:23", "zstd:03", "zstd:3 ", "lz4", "None", "zstd:-1"],
)
def test_unknown_settings_are_refused(spec: str) -> None:
    with pytest.raises(BadRequest, match="unknown compression"):
        Codec(spec)


@pytest.mark.parametrize("spec", ["none", "zstd:1", "zstd:3", "zstd:19", "zstd:22"])
@pytest.mark.parametrize("raw", [b"", b"a", block(1), noise(1), bytes(70_000)])
def test_round_trip(spec: str, raw: bytes) -> None:
    number, payload = Codec(spec).compress(raw)
    assert decompress(number, payload, len(raw), LIMIT, "it") == raw
    assert decompress(number, memoryview(payload), len(raw), LIMIT, "it") == raw


def test_what_does_not_shrink_stays_raw() -> None:
    raw = noise(7)
    number, payload = Codec("zstd:3").compress(raw)
    assert number == RAW
    assert payload is raw
    assert Codec("zstd:3").compress(block(7))[0] == ZSTD
    assert Codec("none").compress(block(7)) == (RAW, block(7))


def level(number: int, raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=number).compress(raw)


HARDLY = b"".join(noise(number, 3700) + bytes(396) for number in range(32))
"""Shrinks by a tenth."""
MISLEADING = b"".join(noise(at) if at % 4 == 2 else block(at) for at in range(16))


@pytest.mark.parametrize(
    ("raw", "kept_raw"),
    [
        pytest.param(HARDLY, True, id="hardly"),
        pytest.param(b"".join(map(block, range(32))), False, id="well"),
        pytest.param(HARDLY[: 60 << 10], True, id="small"),
        pytest.param(HARDLY[: 64 << 10], True, id="just large enough"),
        pytest.param(HARDLY + bytes(4), True, id="odd length"),
        pytest.param(HARDLY + b"".join(map(block, range(96))), False, id="a quarter of it"),
        pytest.param(MISLEADING, False, id="where it is sampled only"),
    ],
)
def test_who_is_sparing_keeps_raw_what_hardly_shrinks(raw: bytes, kept_raw: bool) -> None:
    kept = (RAW, raw) if kept_raw else (ZSTD, level(9, raw))
    assert level(-1, raw) != level(9, raw)
    assert Codec("zstd:9", sparing=True).compress(raw) == kept
    assert Codec("zstd:9").compress(raw) == (ZSTD, level(9, raw))


def test_what_does_not_shrink_stays_raw_for_the_sparing_too() -> None:
    raw = noise(3, 1 << 17)
    assert Codec("zstd:3", sparing=True).compress(raw) == (RAW, raw)
    assert Codec("none", sparing=True).compress(HARDLY) == (RAW, HARDLY)


def test_no_time_is_spent_on_what_hardly_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []
    whole = codec._compressor
    monkeypatch.setattr(codec, "_compressor", lambda n: levels.append(n) or whole(n))
    Codec("zstd:9", sparing=True).compress(HARDLY)
    assert levels == [codec._QUICK, codec._QUICKEST]
    levels.clear()
    Codec("zstd:9", sparing=True).compress(b"".join(map(block, range(32))))
    assert levels == [codec._QUICK, 9], "the whole was looked at in vain"


@pytest.mark.parametrize("cut", range(30))
def test_a_payload_cut_anywhere_is_damaged(cut: int) -> None:
    number, payload = Codec("zstd:3").compress(block(1))
    with pytest.raises(Damaged):
        decompress(number, payload[: len(payload) * cut // 30], 4096, LIMIT, "it")


@pytest.mark.parametrize("checksum", [True, False])
def test_a_flipped_bit_never_gives_another_length(*, checksum: bool) -> None:
    """What was written with a checksum, as once all was, is right or refused."""
    payload = zstandard.ZstdCompressor(level=3, write_checksum=checksum).compress(block(1))
    found = set()
    for bit in range(len(payload) * 8):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found.add(decompress(ZSTD, bytes(flipped), 4096, LIMIT, "it"))
        except Damaged:
            continue
    assert {len(raw) for raw in found} <= {4096}
    assert checksum == (found <= {block(1)}), "else the caller's hashes have to tell"


def _header_claiming(size: int) -> bytes:
    # Magic, a descriptor with an 8-byte content size and a checksum, a window, the size.
    return b"\x28\xb5\x2f\xfd" + bytes([0b11_0_0_0_1_00, 0x00]) + size.to_bytes(8, "little")


_plain = zstandard.ZstdCompressor(level=3, write_content_size=True)
_unsized = zstandard.ZstdCompressor(level=3, write_content_size=False)

BOMBS = {
    "a gigabyte of zeros": (_plain.compress(bytes(1 << 30)), 4096),
    "a gigabyte that the caller also claims": (_plain.compress(bytes(1 << 26)), 1 << 26),
    "claims a tebibyte": (_header_claiming(1 << 40) + bytes(64), 4096),
    "claims more than any memory": (_header_claiming((1 << 64) - 3) + bytes(64), 4096),
    "claims what is expected, has nothing": (_header_claiming(4096), 4096),
    "does not state its size": (_unsized.compress(block(1)), 4096),
    "smaller than stated elsewhere": (_plain.compress(bytes(4095)), 4096),
    "larger than stated elsewhere": (_plain.compress(bytes(4097)), 4096),
    "trailing byte": (_plain.compress(bytes(4096)) + b"x", 4096),
    "two frames": (_plain.compress(bytes(4096)) * 2, 4096),
    "a frame and a skippable one": (
        _plain.compress(bytes(4096)) + b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
        4096,
    ),
    "only a skippable frame": (b"\x50\x2a\x4d\x18\x04\0\0\0abcd", 4096),
    "not zstd": (b"PK\x03\x04" + bytes(40), 4096),
    "empty": (b"", 4096),
}


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_payloads_are_refused_before_memory_is_taken(name: str) -> None:
    payload, claimed = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(Damaged) as caught:
            decompress(ZSTD, payload, claimed, LIMIT, "the frame")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.reason == "bad-encoding"


def test_an_unknown_codec_and_a_wrong_raw_size_are_damaged() -> None:
    with pytest.raises(Damaged, match="unknown codec 7"):
        decompress(7, b"abc", 3, LIMIT, "it")
    with pytest.raises(Damaged, match="3 bytes where 4"):
        decompress(RAW, b"abc", 4, LIMIT, "it")
