"""Every decoder of stored bytes, and the mutations that it is fed with.

``fuzzer`` runs in a child with little memory to spare: for each (decoder, seed, count) it spoils
valid samples and counts how they ended.  Allowed are a value or ``Damaged``/``Unsupported``, soon.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from blockvault.errors import Damaged, Unsupported
from blockvault.ids import ZERO_ID, object_id
from blockvault.model import events, projections, tree
from blockvault.model.rows import Row, from_row, pack_rows, to_row, unpack_rows
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.store import eventlog, frames, headfile
from blockvault.store.codec import Codec

MEMORY = 256 << 20
"""Address space that a decoder may take beyond what the process had."""
SOON = 1.0
"""Seconds that one input may take."""

_OID = object_id(b"x")
_VOLUMES = (Volume("vda", 1 << 30, _OID), Volume("vdb", 4096, ZERO_ID))


class Tally(NamedTuple):
    """How a batch ended; ``bad`` are the inputs that ended otherwise, in words."""

    values: int
    refused: int
    slowest: float
    bad: list[str]


def _samples_of_frames() -> Iterator[bytes]:
    rng = random.Random(1)
    blocks = [rng.randbytes(4096) for _ in range(3)]
    text = [b"line %d\n" % n * 500 for n in range(20)]
    for objects in ([b"one"], blocks, text, [b"a" * n for n in range(1, 60)], [b"x" * 1024] * 100):
        for spec in ("none", "zstd:3"):
            yield frames.encode(objects, Codec(spec))


def _decode_frame(data: bytes) -> None:
    list(frames.decode(data))


def _rows() -> list[Row]:
    made: list[events.Event] = [
        events.Init(vault_id=bytes(16), block_size=4096, compression="zstd:3"),
        events.BranchCreated(name="main", source=0, source_seq=0, snapshot=None, volumes=()),
        events.Wrote(branch=2, volume="vda", offset=0, length=8192, ids=_OID * 2),
        events.Trimmed(branch=2, volume="vda", offset=0, length=4096),
        events.Barrier(branch=2),
        events.Snapshotted(branch=2, volumes=_VOLUMES, snapshot=_OID),
        events.Tagged(name="v1", snapshot=_OID),
    ]
    return [to_row(event, n) for n, event in enumerate(made)]


def _decode_rows(data: bytes) -> None:
    for row in unpack_rows(data):
        from_row(row)


_CHAIN = bytes(32)


def _samples_of_records() -> Iterator[bytes]:
    payload = pack_rows(_rows()) * 1
    for content in (payload, payload + bytes(5000), b""):
        chain = eventlog.next_chain(_CHAIN, 7, 1_000, 7, content)
        record = eventlog.Record(7, 7, 1_000, content, chain)
        for spec in ("none", "zstd:3"):
            yield eventlog.encode(record, Codec(spec))


def _decode_record(data: bytes) -> None:
    eventlog.peek(7, data)
    eventlog.decode(7, data, _CHAIN)


def _samples_of_snapshots() -> Iterator[bytes]:
    for parents in ((), (_OID,), (_OID, object_id(b"y"))):
        made = Snapshot(
            parents=parents,
            volumes=_VOLUMES,
            attachments=_VOLUMES[:1],
            message="a message" * len(parents),
            author="me",
            time_us=5,
            seq=9,
        )
        yield made.encode()


class _OneRow:
    """Tables in which every row has this value."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._value

    def scan(
        self, table: str, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return iter([(start or bytes(8), self._value)])


def _samples_of_table_rows() -> Iterator[bytes]:
    pack = pack_rows  # any packed array will do
    yield pack([("main", 0, 0, False, 5, 9, _OID, 5, 9)])[1:]
    yield pack([(34, 1_000, _OID, _OID, _VOLUMES)])[1:]
    yield pack([(5, 5, 1_000)])[1:]
    yield pack([(_OID, 5)])[1:]


def _decode_table_rows(data: bytes) -> None:
    table = _OneRow(data)
    readers: list[Callable[[], Any]] = [
        lambda: projections.get_branch(table, 2),
        lambda: projections.waypoint(table, 2, 5),
        lambda: list(projections.trail(table, 2)),
        lambda: projections.tag_named(table, "v1"),
        lambda: projections.recorded(table, _OID),
    ]
    refusals = 0
    for read in readers:
        try:
            read()
        except Damaged:
            refusals += 1
    if refusals == len(readers):
        raise Damaged("by all of them")


def _decode_slot(data: bytes) -> None:
    if headfile.decode(data) is None:
        raise Damaged("not a slot")


class _OneNode:
    """A source in which every node is this one."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def get_many(self, ids: Sequence[bytes], /) -> dict[bytes, bytes]:
        return dict.fromkeys(ids, self._data)


def _decode_node(data: bytes) -> None:
    tree.children(tree.fetch(_OneNode(data), [_OID])[_OID])


DECODERS: Mapping[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "frame": (_decode_frame, _samples_of_frames),
    "record": (_decode_record, _samples_of_records),
    "events": (_decode_rows, lambda: iter([pack_rows(_rows())])),
    "snapshot": (lambda data: void(Snapshot.decode(data)), _samples_of_snapshots),
    "node": (_decode_node, lambda: iter([_OID * 32, ZERO_ID * 31 + _OID])),
    "table row": (_decode_table_rows, _samples_of_table_rows),
    "head slot": (
        _decode_slot,
        lambda: iter([headfile.encode(headfile.Slot(5, 9, _OID))]),
    ),
}


def void(_: object) -> None:
    """Forget a value."""


_PREFIXES = (
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\x7f\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\x91" * 3000,
)


def spoil(data: bytes, samples: list[bytes], rng: random.Random) -> bytes:
    """One to four mutations of the kinds that storage and attackers make."""
    spoilt = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(spoilt) + 1)
        match rng.randrange(8):
            case 0 if spoilt:
                spoilt[at % len(spoilt)] ^= 1 << rng.randrange(8)
            case 1:
                del spoilt[at:]
            case 2:
                spoilt[at:at] = rng.randbytes(rng.choice((1, 8, 300)))
            case 3:
                del spoilt[at : at + rng.choice((1, 4, 8, 32))]
            case 4:  # lengths and counts that claim the sky
                spoilt[at : at + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f")
                )
            case 5:  # msgpack's length prefixes, and deep nesting
                spoilt[at : at + 5] = rng.choice(_PREFIXES)
            case 6:
                other = rng.choice(samples)
                spoilt[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                spoilt = spoilt * 2
    return bytes(spoilt[: 1 << 20])


def fuzzer(lane: int) -> Callable[[tuple[str, int, int]], Tally]:
    """For ``Children``: run a batch of one decoder."""
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))

    def run(batch: tuple[str, int, int]) -> Tally:
        name, seed, count = batch
        decode, make = DECODERS[name]
        rng, samples = random.Random(seed), list(make())
        for sample in samples:
            decode(sample)
        values = refused = 0
        slowest, bad = 0.0, []
        for number in range(count):
            data = spoil(rng.choice(samples), samples, rng)
            begun = time.process_time()
            try:
                decode(data)
                values += 1
            except (Damaged, Unsupported):
                refused += 1
            except Exception as error:
                bad.append(f"{name} {seed}/{number}: {error!r} for {data[:200].hex()}")
            slowest = max(slowest, time.process_time() - begun)
        return Tally(values, refused, slowest, bad[:5])

    return run
