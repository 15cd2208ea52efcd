"""Requests from bytes: whole, byte by byte, gathered, refused, skipped; no device, no socket."""

from __future__ import annotations

import random

import pytest

from blockvault.nbd.connection import (
    BATCH_BYTES,
    GATHERED,
    Connection,
    Item,
    Reads,
    Refusal,
    Request,
    Writes,
)
from blockvault.nbd.wire import MAX_PAYLOAD
from tests.nbd import messages as m

SIZE = 1 << 30


def connection(
    *, read_only: bool = False, structured: bool = True, contexts: bool = True, size: int = SIZE
) -> Connection:
    return Connection(size, read_only=read_only, structured=structured, contexts=contexts)


def parse(connection: Connection, stream: bytes) -> tuple[list[Item], int]:
    return connection.parse(memoryview(stream), 0, len(stream))


def flat(items: list[Item]) -> list[tuple[object, ...]]:
    """Items as single requests: what they mean, however they were gathered."""
    found: list[tuple[object, ...]] = []
    for item in items:
        if isinstance(item, Reads):
            found += [
                ("read", c, o, n) for c, (o, n) in zip(item.cookies, item.ranges, strict=True)
            ]
        elif isinstance(item, Writes):
            found += [
                ("write", c, o, bytes(v))
                for c, (o, v) in zip(item.cookies, item.writes, strict=True)
            ]
        elif isinstance(item, Request):
            found.append(("request", *item[:5], bytes(item.payload)))
        else:
            found.append(("refusal", *item))
    return found


def cookie(number: int) -> bytes:
    return number.to_bytes(8, "big")


def test_neighbours_of_a_kind_are_gathered_in_order() -> None:
    stream = b"".join(
        [
            m.request(m.READ, 0, 512, cookie=1),
            m.request(m.READ, SIZE - 1, 1, cookie=2),
            m.write(8192, b"abc", cookie=3),
            m.write(4096, b"defg", cookie=4),
            m.request(m.READ, 7, 9, cookie=5),
            m.request(m.FLUSH, cookie=6),
            m.request(m.READ, 7, 9, cookie=7),
        ]
    )
    items, rest = parse(connection(), stream)
    assert rest == len(stream)
    assert [type(item) for item in items] == [Reads, Writes, Reads, Request, Reads]
    assert flat(items) == [
        ("read", cookie(1), 0, 512),
        ("read", cookie(2), SIZE - 1, 1),
        ("write", cookie(3), 8192, b"abc"),
        ("write", cookie(4), 4096, b"defg"),
        ("read", cookie(5), 7, 9),
        ("request", m.FLUSH, 0, cookie(6), 0, 0, b""),
        ("read", cookie(7), 7, 9),
    ]


def test_byte_by_byte_gives_the_same_requests() -> None:
    rng = random.Random(7)
    parts = []
    for number in range(60):
        command = rng.randrange(9)
        length = rng.choice([0, 1, 512, 700])
        data = rng.randbytes(length) if command == m.WRITE else b""
        flags = rng.choice([0, 0, 1, 4, 32])
        offset = rng.choice([0, 5000, SIZE, SIZE - length])
        if command != m.DISC:
            parts.append(m.request(command, offset, length, flags=flags, cookie=number, data=data))
    stream = b"".join(parts)
    fast, start = connection(), 0
    whole: list[tuple[object, ...]] = []
    while start < len(stream):
        items, start = fast.parse(memoryview(stream), start, len(stream))
        whole += flat(items)
    assert len(whole) == len(parts)
    slow, start = connection(), 0
    found: list[tuple[object, ...]] = []
    for stop in range(1, len(stream) + 1):
        items, start = slow.parse(memoryview(stream), start, stop)
        found += flat(items)
    assert start == len(stream)
    assert found == whole


@pytest.mark.parametrize("length", [1, 512, GATHERED, GATHERED + 1])
def test_an_incomplete_write_says_what_it_needs(length: int) -> None:
    stream = m.write(4096, bytes(length))
    for stop in (0, 1, 27):
        assert connection().parse(memoryview(stream), 0, stop) == ([], 0)
        assert connection().needed(memoryview(stream), 0, stop) == 28
    for stop in (28, len(stream) - 1):
        assert connection().parse(memoryview(stream), 0, stop) == ([], 0)
        assert connection().needed(memoryview(stream), 0, stop) == 28 + length


@pytest.mark.parametrize(
    ("request_", "errno"),
    [
        (m.request(m.READ, SIZE - 511, 512), m.EINVAL),
        (m.request(m.READ, SIZE, 1), m.EINVAL),
        (m.request(m.READ, (1 << 64) - 1, 1), m.EINVAL),
        (m.request(m.READ, 0, MAX_PAYLOAD + 1), m.EOVERFLOW),
        (m.request(m.READ, 0, 512, flags=m.NO_HOLE), m.EINVAL),
        (m.request(m.READ, 0, 512, flags=m.REQ_ONE), m.EINVAL),
        (m.request(m.READ, 0, 512, flags=0x8000), m.EINVAL),
        (m.request(m.FLUSH, 4096, 0), m.EINVAL),
        (m.request(m.FLUSH, 0, 4096), m.EINVAL),
        (m.request(m.TRIM, SIZE, 1), m.EINVAL),
        (m.request(m.TRIM, 0, 512, flags=m.NO_HOLE), m.EINVAL),
        (m.request(m.ZEROES, SIZE - 1, 2), m.ENOSPC),
        (m.request(m.ZEROES, 0, 2, flags=m.DF), m.EINVAL),
        (m.request(m.CACHE, 1, SIZE), m.EINVAL),
        (m.request(m.CACHE, 0, 1, flags=m.DF), m.EINVAL),
        (m.request(m.STATUS, 0, 0), m.EINVAL),
        (m.request(m.STATUS, 1, SIZE), m.EINVAL),
        (m.request(m.STATUS, 0, 1, flags=m.DF), m.EINVAL),
        (m.request(8, 0, 512), m.EINVAL),
        (m.request(0xFFFF, 0, 512), m.EINVAL),
        (m.write(SIZE - 1, b"ab"), m.ENOSPC),
        (m.write(0, b"ab", flags=m.FAST_ZERO), m.EINVAL),
    ],
)  # fmt: skip
def test_refusals(request_: bytes, errno: int) -> None:
    stream = request_ + m.request(m.READ, 0, 1, cookie=2)
    items, rest = parse(connection(), stream)
    assert rest == len(stream)
    assert isinstance(items[0], Refusal)
    assert items[0].errno == errno
    assert flat(items)[1:] == [("read", cookie(2), 0, 1)]


@pytest.mark.parametrize(
    "request_", [m.write(0, b"ab"), m.request(m.TRIM, 0, 1), m.request(m.ZEROES, SIZE, 1)]
)
def test_changes_of_a_read_only_export_are_not_permitted(request_: bytes) -> None:
    items, rest = parse(connection(read_only=True), request_)
    assert flat(items) == [("refusal", request_[7], cookie(1), m.EPERM)]
    assert rest == len(request_)


def test_what_needs_negotiation_is_refused_without_it() -> None:
    plain = connection(structured=False, contexts=False)
    for request_ in (
        m.request(m.READ, 0, 512, flags=m.DF),
        m.request(m.READ, 0, MAX_PAYLOAD + 1),
        m.request(m.STATUS, 0, 512),
    ):
        assert flat(parse(plain, request_)[0])[0][3] == m.EINVAL


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (m.READ, m.FUA),
        (m.READ, m.DF),
        (m.FLUSH, m.FUA),
        (m.TRIM, m.FUA),
        (m.CACHE, m.FUA),
        (m.ZEROES, m.FUA | m.NO_HOLE | m.FAST_ZERO),
        (m.STATUS, m.FUA | m.REQ_ONE),
    ],
)
def test_flags_that_are_accepted(command: int, flags: int) -> None:
    length = 0 if command == m.FLUSH else 512
    items, _ = parse(connection(), m.request(command, 0, length, flags=flags))
    assert flat(items) == [("request", command, flags, cookie(1), 0, length, b"")]


@pytest.mark.parametrize("command", [m.READ, m.WRITE, m.TRIM, m.ZEROES, m.CACHE])
def test_requests_of_no_bytes_are_in_order(command: int) -> None:
    items, _ = parse(connection(), m.request(command, SIZE, 0))
    assert flat(items) == [("request", command, 0, cookie(1), SIZE, 0, b"")]


@pytest.mark.parametrize("length", [10, MAX_PAYLOAD + 1, 0xFFFFFFFF])
def test_the_payload_of_a_refused_write_is_skipped_in_pieces(length: int) -> None:
    """Nothing of it is kept, so even 4 GiB cost no memory; here the first and last of it pass."""
    offset = SIZE if length == 10 else 0
    refusing = connection(size=SIZE * 8 if length > 10 else SIZE)
    items, rest = parse(refusing, m.request(m.WRITE, offset, length) + b"12345")
    assert [type(item) for item in items] == [Refusal]
    assert rest == 28 + 5
    refusing._skip -= length - 10  # as if all but ten bytes had passed
    stream = b"67890" + m.request(m.READ, 0, 1)
    items, rest = parse(refusing, stream)
    assert flat(items) == [("read", cookie(1), 0, 1)]
    assert rest == len(stream)


def test_a_wrong_magic_ends_the_connection_after_what_came_before() -> None:
    broken = connection()
    items, rest = parse(broken, m.request(m.READ, 0, 1) + b"\0" * 28)
    assert flat(items) == [("read", cookie(1), 0, 1)]
    assert broken.closed
    assert broken.violation
    assert rest == 28


def test_disc_ends_the_connection_and_hides_what_follows() -> None:
    leaving = connection()
    items, _ = parse(leaving, m.write(0, b"x") + m.request(m.DISC) + m.write(0, b"y"))
    assert flat(items) == [("write", cookie(1), 0, b"x")]
    assert leaving.closed
    assert not leaving.violation


def test_a_batch_is_bounded_by_the_data_of_its_replies() -> None:
    stream = m.request(m.READ, 0, GATHERED) * 100
    items, rest = parse(connection(), stream)
    assert len(flat(items)) == BATCH_BYTES // GATHERED
    assert rest == 28 * len(flat(items))
    items, rest = parse(connection(), m.request(m.STATUS, 0, 1) * 100_000)
    assert len(items) < 5000


@pytest.mark.parametrize("command", [m.CACHE, m.TRIM, m.ZEROES])
@pytest.mark.parametrize(
    ("length", "count"), [(4096, 241), (GATHERED, 4), (BATCH_BYTES, 1), (SIZE, 1)]
)
def test_a_batch_is_bounded_by_what_is_read_or_changed_without_data(
    command: int, length: int, count: int
) -> None:
    items, _ = parse(connection(), m.request(command, 0, length) * 1000)
    assert len(items) == count


def test_a_batch_holds_at_most_one_large_request_and_it_is_the_last() -> None:
    large = m.request(m.READ, 0, MAX_PAYLOAD)
    items, _ = parse(connection(), m.request(m.READ, 0, 1) + large + large)
    assert [type(item) for item in items] == [Reads, Request]
