"""The log record codec and its chain."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from blake3 import blake3

from blockvault.errors import BadRequest, Damaged
from blockvault.store import eventlog
from blockvault.store.codec import Codec
from blockvault.store.eventlog import Record
from tests.store.material import CODEC, OPTIONS, noise

NONE = Codec("none")
START = eventlog.genesis(OPTIONS.vault_id)


def record(payload: bytes, first: int = 7, count: int = 2, time_us: int = -5) -> Record:
    chain = eventlog.next_chain(START, first, time_us, count, payload)
    return Record(first, count, time_us, payload, chain)


SAMPLES = {
    "empty": record(b""),
    "short": record(b"rows"),
    "long": record(b"some rows " * 1000),
    "incompressible": record(noise(1)),
    "first": record(b"x", first=1, count=1, time_us=1_790_000_000_000_000),
    "extreme": record(b"x", first=(1 << 63) - 1, count=0xFFFFFFFF, time_us=-(1 << 63)),
}


@pytest.mark.parametrize("codec", [CODEC, NONE], ids=["zstd", "none"])
@pytest.mark.parametrize("name", SAMPLES)
def test_round_trip(name: str, codec: Codec) -> None:
    wanted = SAMPLES[name]
    data = eventlog.encode(wanted, codec)
    assert eventlog.decode(wanted.first_seq, memoryview(data), START) == wanted
    assert eventlog.peek(wanted.first_seq, data) == (
        wanted.last_seq,
        wanted.time_us,
        wanted.chain,
    )


def test_the_bytes_and_the_chain_are_these() -> None:
    """Changing this test means changing the format."""
    assert blake3(b"blockvault log 1" + bytes(range(16))).digest() == START
    chained = START + (7).to_bytes(8, "little") + struct.pack("<q", -5) + b"\2\0\0\0" + b"rows"
    assert SAMPLES["short"].chain == blake3(chained).digest()
    header = b"\1\0\0\0\2\0\0\0\4\0\0\0" + struct.pack("<q", -5) + SAMPLES["short"].chain
    check = blake3(b"log\0" + (7).to_bytes(8, "little") + header).digest(8)
    assert eventlog.encode(SAMPLES["short"], CODEC) == header + check + b"rows"
    assert eventlog.encode(SAMPLES["long"], CODEC)[:2] == b"\1\1"


@pytest.mark.parametrize("name", ["short", "long", "incompressible"])
def test_a_record_cut_at_any_byte_is_damaged(name: str) -> None:
    data = eventlog.encode(SAMPLES[name], CODEC)
    for cut in range(0, len(data), max(1, len(data) // 200)):
        with pytest.raises(Damaged):
            eventlog.decode(7, data[:cut], START)


@pytest.mark.parametrize("name", ["short", "long"])
def test_trailing_bytes_and_flipped_bits_are_damage(name: str) -> None:
    data = eventlog.encode(SAMPLES[name], CODEC)
    with pytest.raises(Damaged):
        eventlog.decode(7, data + b"\0", START)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            # zstd has a few bits that mean nothing: then the record is what it was.
            assert eventlog.decode(7, bytes(flipped), START) == SAMPLES[name]
            assert bit >= eventlog.HEADER_SIZE * 8
            assert name == "long"
        except Damaged:
            continue


def test_a_record_proves_its_place_in_the_log() -> None:
    data = eventlog.encode(SAMPLES["short"], CODEC)
    with pytest.raises(Damaged, match="bad header"):
        eventlog.decode(8, data, START)
    with pytest.raises(Damaged, match="does not continue") as caught:
        eventlog.decode(7, data, bytes(32))
    assert caught.value.reason == "broken-chain"


@pytest.mark.parametrize("read", [eventlog.peek, lambda *what: eventlog.decode(*what, START)])
def test_no_flipped_bit_makes_a_gap_or_moves_one(read: Callable[[int, bytes], object]) -> None:
    """Gaps have no payload that the chain could prove."""
    gap = eventlog.encode(replace(SAMPLES["short"], payload=b"", pruned=True), CODEC)
    for data in (gap, eventlog.encode(record(b""), CODEC)):
        for bit in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Damaged, match="header"):
                read(7, bytes(flipped))


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, b"\0"), (0, b"\2"), (1, b"\5"), (2, b"\1"), (4, bytes(4)), (8, b"\xff\xff\xff\xff")],
    ids=["version 0", "version 2", "codec", "reserved", "no event", "4 GiB"],
)
def test_hostile_headers_are_damage(at: int, value: bytes) -> None:
    data = bytearray(eventlog.encode(SAMPLES["short"], CODEC))
    data[at : at + len(value)] = value
    data[52:60] = blake3(b"log\0" + (7).to_bytes(8, "little") + data[:52]).digest(8)
    with pytest.raises(Damaged):
        eventlog.decode(7, bytes(data), START)


def test_a_record_too_large_to_read_is_not_written() -> None:
    with pytest.raises(BadRequest):
        eventlog.encode(replace(SAMPLES["short"], payload=bytes(eventlog.MAX_RAW + 1)), NONE)
