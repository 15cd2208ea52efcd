"""Requests against a device in memory: data, errors, durability; whole sessions, no sockets."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.errors import Damaged, NoSpace
from blockvault.nbd.exports import Exports
from tests.nbd import messages as m
from tests.nbd.memory import BatchMemoryDevice, MemoryCatalogue, MemoryDevice, MemoryVolume
from tests.nbd.script import play

SIZE = 1 << 20
HELLO = m.client_flags() + m.option(m.STRUCTURED)
ALLOCATION = m.option(m.SET_META, m.meta_data("vda", "base:allocation", "blockvault:diff:v1"))


@pytest.fixture(params=[MemoryDevice, BatchMemoryDevice])
def device(request: pytest.FixtureRequest) -> MemoryDevice:
    return request.param(SIZE)


@pytest.fixture
def volume(device: MemoryDevice) -> MemoryVolume:
    return MemoryVolume("vda", device)


def shared(volume: MemoryVolume) -> Exports:
    """The volume with another client, who stays: the end of a session does not flush it."""
    exports = Exports(MemoryCatalogue(volume))
    exports.attach(volume)
    return exports


def session(volume: MemoryVolume, *requests: bytes) -> list[m.Answer]:
    """Play requests in one piece, structured replies agreed on; return the answers by cookie."""
    options, exports = HELLO + ALLOCATION + m.go("vda"), shared(volume)
    agreed = len(play([options], exports=exports))
    volume.device.calls.clear()
    volume.device.flushes = 0
    answers = m.answers(play([options + b"".join(requests)], exports=exports)[agreed:])
    return sorted(answers)


def test_what_was_written_is_read(volume: MemoryVolume) -> None:
    written = [m.write(n * 1000, bytes([n]) * 700, cookie=n) for n in range(1, 20)]
    read = [m.request(m.READ, n * 1000, 700, cookie=100 + n) for n in range(1, 20)]
    answers = session(volume, *written, *read)
    assert all(a.errno == 0 for a in answers)
    assert [a.data for a in answers[19:]] == [bytes([n]) * 700 for n in range(1, 20)]


def test_simple_replies_without_negotiation(volume: MemoryVolume) -> None:
    options = m.client_flags() + m.option(m.EXPORT_NAME, b"vda")
    requests = [
        m.write(5, b"hello", cookie=1),
        m.request(m.READ, 0, 12, cookie=2),
        m.request(m.READ, SIZE, 12, cookie=3),
        m.request(m.READ, 3, 0, cookie=4),
    ]
    stream = play([options + b"".join(requests)], volume)[10:]
    assert m.answers(stream, {2: 12, 3: 12}) == [
        (1, 0, b"", ()), (2, 0, b"\0\0\0\0\0hello\0\0", ()),
        (3, m.EINVAL, b"", ()), (4, 0, b"", ()),
    ]  # fmt: skip


def test_zero_and_trim_read_as_zeros(volume: MemoryVolume, device: MemoryDevice) -> None:
    device.data[:] = b"x" * SIZE
    answers = session(
        volume,
        m.request(m.ZEROES, 10, 5000, cookie=1, flags=m.NO_HOLE),
        m.request(m.TRIM, 8192, 4096, cookie=2),
        m.request(m.ZEROES, 20000, 1, cookie=3, flags=m.FAST_ZERO),
        m.request(m.CACHE, 0, SIZE, cookie=4),
    )
    assert [a.errno for a in answers] == [0] * 4
    assert not any(device.data[10:5010])
    assert not any(device.data[8192:12288])
    assert device.data.count(0) == 5000 + 4096 + 1


def test_requests_of_no_bytes_do_nothing(volume: MemoryVolume, device: MemoryDevice) -> None:
    commands = [m.READ, m.WRITE, m.TRIM, m.CACHE, m.ZEROES]
    answers = session(volume, *[m.request(c, 0, 0, cookie=c) for c in commands])
    assert [a.errno for a in answers] == [0] * 5
    assert answers[0].chunks == ((0, b""),)
    assert [call for call in device.calls if call[0] != "flush"] == []


def test_large_requests(volume: MemoryVolume, device: MemoryDevice) -> None:
    data = bytes(range(256)) * (3 * SIZE // 4 // 256)
    answers = session(
        volume,
        m.write(100, data, cookie=1),
        m.request(m.READ, 99, len(data) + 2, cookie=2),
        m.request(m.READ, 100, len(data), cookie=3, flags=m.DF),
    )
    assert answers[1].data == b"\0" + data + b"\0"
    assert answers[2].data == data
    assert len(answers[2].chunks) == 1
    assert ("write", 100, len(data)) in device.calls, "one write is one call of the device"


# -- durability ------------------------------------------------------------------------------------


def test_flush_covers_what_came_before(volume: MemoryVolume, device: MemoryDevice) -> None:
    answers = session(volume, m.write(0, b"abc", cookie=1), m.request(m.FLUSH, cookie=2))
    assert [a.errno for a in answers] == [0, 0]
    assert device.durable[:3] == b"abc"


@pytest.mark.parametrize(
    "change",
    [
        m.write(0, b"abc", flags=m.FUA),
        m.request(m.ZEROES, 0, 3, flags=m.FUA),
        m.request(m.TRIM, 0, 3, flags=m.FUA),
    ],
    ids=["write", "zero", "trim"],
)
def test_fua_is_answered_after_a_flush(
    volume: MemoryVolume, device: MemoryDevice, change: bytes
) -> None:
    device.data[:3] = b"xyz"
    answers = session(volume, change)
    assert [a.errno for a in answers] == [0]
    assert [call[0] for call in device.calls][1:] == ["flush"], "the change, then its flush"
    assert device.durable == device.data
    assert device.data[:3] != b"xyz"


def test_one_flush_serves_all_that_wait(volume: MemoryVolume, device: MemoryDevice) -> None:
    requests = [m.write(n, b"x", flags=m.FUA, cookie=n) for n in range(50)]
    answers = session(volume, *requests, m.request(m.FLUSH, cookie=99))
    assert len(answers) == 51
    assert device.flushes <= 2, "at most one began before all had come"


def test_a_flush_that_fails_fails_all_that_wait(volume: MemoryVolume, device: MemoryDevice) -> None:
    def no_flush(what: str, offset: int, length: int) -> None:
        if what == "flush":
            raise NoSpace("the disk is full")

    device.fault = no_flush
    answers = session(
        volume,
        m.write(0, b"a", flags=m.FUA, cookie=1),
        m.write(1, b"b", cookie=2),
        m.request(m.FLUSH, cookie=3),
        m.request(m.ZEROES, 2, 1, flags=m.FUA, cookie=4),
        m.request(m.TRIM, 3, 1, flags=m.FUA, cookie=5),
    )
    assert [a.errno for a in answers] == [m.ENOSPC, 0, m.ENOSPC, m.ENOSPC, m.ENOSPC]


def test_flush_of_a_read_only_export_does_nothing() -> None:
    device = MemoryDevice(SIZE, read_only=True)
    answers = session(
        MemoryVolume("vda", device),
        m.request(m.FLUSH, cookie=1),
        m.request(m.READ, 0, 1, flags=m.FUA, cookie=2),
    )
    assert [a.errno for a in answers] == [0, 0]
    assert device.flushes == 0


CHANGES = st.tuples(
    st.sampled_from(["read", "write", "zero", "trim", "fua", "flush"]),
    st.integers(0, 5000),
    st.integers(0, 5000),
    st.integers(0, 255),
)


@given(st.lists(CHANGES, max_size=30), st.integers(1, 20_000), st.booleans())
def test_requests_take_effect_in_their_order(
    changes: list[tuple[str, int, int, int]], piece: int, batched: bool
) -> None:
    device = (BatchMemoryDevice if batched else MemoryDevice)(10_000)
    model, expected = bytearray(10_000), {}
    stream = HELLO + m.go("vda")
    for cookie, (what, offset, length, fill) in enumerate(changes):
        if what == "read":
            stream += m.request(m.READ, offset, length, cookie=cookie)
            expected[cookie] = bytes(model[offset : offset + length])
            continue
        expected[cookie] = b""
        if what == "flush":
            stream += m.request(m.FLUSH, cookie=cookie)
            continue
        data = bytes([fill]) * length if what in ("write", "fua") else bytes(length)
        model[offset : offset + length] = data
        if what in ("write", "fua"):
            stream += m.write(offset, data, cookie=cookie, flags=m.FUA * (what == "fua"))
        else:
            command = m.ZEROES if what == "zero" else m.TRIM
            stream += m.request(command, offset, length, cookie=cookie)
    stream += m.request(m.FLUSH, cookie=len(changes))
    expected[len(changes)] = b""
    pieces = [stream[start : start + piece] for start in range(0, len(stream), piece)]
    sent = play(pieces, exports=shared(MemoryVolume("vda", device)))
    agreed = len(play([HELLO + m.go("vda")], MemoryVolume("vda", MemoryDevice(10_000))))
    assert {a.cookie: a.data for a in m.answers(sent[agreed:])} == expected
    assert device.data == model
    assert device.durable == model


# -- errors of the device --------------------------------------------------------------------------


def test_only_the_request_that_failed_gets_the_error(
    volume: MemoryVolume, device: MemoryDevice
) -> None:
    def fault(what: str, offset: int, length: int) -> None:
        if what == "read" and offset == 3000:
            raise Damaged("block 4711 of /secret/path")
        if what == "write" and offset == 5000:
            raise NoSpace("/secret/path is full")
        if what == "trim":
            raise RuntimeError("a bug")

    device.fault = fault
    answers = session(
        volume,
        *[m.request(m.READ, n * 1000, 10, cookie=n) for n in range(5)],
        *[m.write(n * 1000, b"new", cookie=10 + n) for n in range(8)],
        m.request(m.TRIM, 0, 10, cookie=20),
    )
    errors = {a.cookie: a.errno for a in answers if a.errno}
    assert errors == {3: m.EIO, 15: m.ENOSPC, 20: m.EIO}
    for n in range(8):
        assert (device.data[n * 1000 : n * 1000 + 3] == b"new") == (n != 5)
    raw = play([HELLO + m.go("vda") + m.request(m.READ, 3000, 10)], volume)
    assert b"secret" not in raw


def test_a_device_that_returns_too_little_gives_an_error(
    volume: MemoryVolume, device: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "read", lambda offset, length: b"short")
    answers = session(volume, m.request(m.READ, 0, 10, cookie=1), m.request(m.READ, 0, 5, cookie=2))
    assert [(a.errno, a.data) for a in answers] == [(m.EIO, b""), (0, b"short")]


# -- block status ----------------------------------------------------------------------------------


def test_block_status_of_both_contexts(volume: MemoryVolume, device: MemoryDevice) -> None:
    device.data[8192] = 1
    volume.differing["v1"] = [(0, 4096, False), (4096, 100, True), (8192, SIZE - 8192, False)]
    (answer,) = session(volume, m.request(m.STATUS, 0, 65536))
    assert m.descriptors(answer) == {
        1: [(8192, 3), (4096, 0), (65536 - 12288, 3)],
        2: [(4096, 0), (4096, 1), (65536 - 8192, 0)],
    }


def test_req_one_and_clipping(volume: MemoryVolume, device: MemoryDevice) -> None:
    volume.differing["v1"] = [(0, SIZE, True)]
    (answer,) = session(volume, m.request(m.STATUS, 100, 5000, flags=m.REQ_ONE))
    assert m.descriptors(answer) == {1: [(5000, 3)], 2: [(5000, 1)]}


def test_an_error_of_block_status(volume: MemoryVolume, device: MemoryDevice) -> None:
    def fault(what: str, offset: int, length: int) -> None:
        if what == "extents":
            raise Damaged("tree")

    device.fault = fault
    (answer,) = session(volume, m.request(m.STATUS, 0, 512))
    assert answer.errno == m.EIO


def test_no_status_without_contexts(volume: MemoryVolume) -> None:
    stream = play([HELLO + m.go("vda") + m.request(m.STATUS, 0, 512)], volume)
    assert struct.pack(">IH", m.EINVAL, 0) in stream[-6:]


# -- the session as a whole ------------------------------------------------------------------------


def test_a_violation_ends_only_this_connection(volume: MemoryVolume, device: MemoryDevice) -> None:
    exports = Exports(MemoryCatalogue(volume))
    options = HELLO + m.go("vda")
    play([options + m.write(0, b"kept") + b"garbage" * 10], exports=exports)
    assert device.durable[:4] == b"kept", "the last client of an export flushes it"
    assert (volume.opened, volume.closed) == (1, 1)
    stream = play([options + m.request(m.READ, 0, 4)], exports=exports)
    assert stream.endswith(b"kept")


def test_figures_are_kept(volume: MemoryVolume) -> None:
    exports = Exports(MemoryCatalogue(volume))
    requests = [m.write(n, b"abc", cookie=n) for n in range(10)] + [
        m.request(m.READ, 0, 100),
        m.request(m.READ, SIZE, 100),
        m.request(m.FLUSH),
        m.request(m.ZEROES, 0, 100),
    ]
    play([HELLO + m.go("vda") + b"".join(requests)], exports=exports)
    total = exports.meters()["vda"].total()
    figures = total.as_dict()
    assert figures["requests"] == {
        "read": 1, "write": 10, "zero": 1, "trim": 0,
        "flush": 1, "cache": 0, "status": 0, "refused": 1,
    }  # fmt: skip
    assert (total.bytes_read, total.bytes_written, total.errors) == (100, 30, 1)
    assert sum(figures["latency_us"]["write"].values()) == 10
    assert exports.meters()["vda"].connections == 0
