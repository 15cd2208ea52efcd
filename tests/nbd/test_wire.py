"""The numbers of the protocol against bytes taken from its description."""

from __future__ import annotations

import pytest

from blockvault import errors
from blockvault.nbd import replies, wire
from blockvault.nbd.wire import Errno, errno_of
from tests.nbd import messages


def test_structs_have_the_sizes_of_the_specification() -> None:
    assert wire.GREETING.size == 18
    assert wire.OPTION.size == 16
    assert wire.OPTION_REPLY.size == 20
    assert wire.EXPORT_REPLY.size == 10
    assert wire.INFO_EXPORT.size == 12
    assert wire.INFO_BLOCK_SIZE.size == 14
    assert wire.REQUEST.size == 28
    assert wire.SIMPLE_REPLY.size == 16
    assert wire.CHUNK.size == 20
    assert wire.DATA_CHUNK.size == 28
    assert wire.ERROR_CHUNK.size == 26


def test_magics_spell_what_they_should() -> None:
    assert wire.INIT_MAGIC.to_bytes(8, "big") == b"NBDMAGIC"
    assert wire.OPTION_MAGIC.to_bytes(8, "big") == b"IHAVEOPT"


def test_a_request_is_decoded_field_by_field() -> None:
    raw = messages.request(
        6, 0x1122334455667788, 0x99AABBCC, flags=0x0102, cookie=0x0A0B0C0D0E0F1011
    )
    head, cookie, offset, length = wire.REQUEST.unpack(raw)
    assert head == wire.request_head(6, 0x0102)
    assert cookie == bytes.fromhex("0a0b0c0d0e0f1011")
    assert (offset, length) == (0x1122334455667788, 0x99AABBCC)


def test_replies_as_bytes() -> None:
    cookie = bytes(range(8))
    assert replies.successes([cookie]) == bytes.fromhex("67446698 00000000") + cookie
    assert replies.successes([cookie, b"12345678"]) == (
        bytes.fromhex("67446698 00000000")
        + cookie
        + bytes.fromhex("67446698 00000000")
        + b"12345678"
    )
    assert replies.failure(cookie, Errno.EIO, False) == bytes.fromhex("67446698 00000005") + cookie
    assert replies.failure(cookie, Errno.ENOSPC, True) == (
        bytes.fromhex("668e33ef 0001 8001") + cookie + bytes.fromhex("00000006 0000001c 0000")
    )
    head, data = replies.data_replies([cookie], [(0x1000, 3)], [b"abc"], True)
    assert head == bytes.fromhex("668e33ef 0001 0001") + cookie + bytes.fromhex(
        "0000000b 0000000000001000"
    )
    assert data == b"abc"
    status = replies.block_status(cookie, [(1, [(4096, 3)]), (2, [(8192, 0), (512, 1)])])
    assert status == (
        bytes.fromhex("668e33ef 0000 0005") + cookie
        + bytes.fromhex("0000000c 00000001 00001000 00000003")
        + bytes.fromhex("668e33ef 0001 0005") + cookie
        + bytes.fromhex("00000014 00000002 00002000 00000000 00000200 00000001")
    )  # fmt: skip


def test_data_of_the_wrong_length_are_never_sent() -> None:
    for structured in (False, True):
        with pytest.raises(ValueError, match="2 bytes read instead of 3"):
            replies.data_replies([bytes(8)], [(0, 3)], [b"ab"], structured)
        with pytest.raises(ValueError, match="2 bytes"):
            replies.data_replies([bytes(8)], [(0, 3)], [[b"a", b"b"]], structured)


@pytest.mark.parametrize("structured", [False, True])
def test_data_in_pieces_is_sent_as_it_is(structured: bool) -> None:
    pieces = [b"ab", memoryview(b"cd"), b"e"]
    found = replies.data_replies([b"cookie01"], [(9, 5)], [pieces], structured)
    whole = replies.data_replies([b"cookie01"], [(9, 5)], [b"abcde"], structured)
    assert found[1:] == pieces
    assert b"".join(found) == b"".join(whole)


@pytest.mark.parametrize(
    ("error", "errno"),
    [
        (errors.NoSpace("full"), 28),
        (errors.BadRequest("beyond"), 22),
        (errors.IOFailed("disk"), 5),
        (errors.Damaged("bits"), 5),
        (errors.Busy("held"), 5),
        (OSError(28, "raw"), 5),
        (MemoryError(), 12),
        (RuntimeError("bug"), 5),
    ],
)
def test_errno_of_an_exception(error: Exception, errno: int) -> None:
    assert errno_of(error) == errno
