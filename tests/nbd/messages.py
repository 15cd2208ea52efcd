"""Bytes as a client sends them, and a reader for what a server answers.

The numbers are written out here once more, from the specification: a wrong constant in the program
must not be able to agree with itself.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

FIXED, NO_ZEROES = 1, 2
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = (
    1, 2, 3, 5, 6, 7, 8, 9, 10,
)  # fmt: skip
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
UNSUP, POLICY, INVALID, TLS_REQD, UNKNOWN = (0x80000000 + n for n in (1, 2, 3, 5, 6))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW = 1, 5, 22, 28, 75

GREETING = bytes.fromhex("4e42444d4147494349484156454f50540003")


def client_flags(flags: int = FIXED | NO_ZEROES) -> bytes:
    return struct.pack(">I", flags)


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    return (
        struct.pack(">QII", 0x49484156454F5054, number, len(data) if length is None else length)
        + data
    )


def text(name: str | bytes) -> bytes:
    raw = name.encode() if isinstance(name, str) else name
    return struct.pack(">I", len(raw)) + raw


def info_data(name: str | bytes, *infos: int) -> bytes:
    return text(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def go(name: str = "", *infos: int) -> bytes:
    return option(GO, info_data(name, *infos))


def meta_data(name: str, *queries: str | bytes) -> bytes:
    return text(name) + struct.pack(">I", len(queries)) + b"".join(map(text, queries))


def request(
    command: int,
    offset: int = 0,
    length: int = 0,
    *,
    flags: int = 0,
    cookie: int = 1,
    data: bytes = b"",
) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + data


def write(offset: int, data: bytes, *, flags: int = 0, cookie: int = 1) -> bytes:
    return request(WRITE, offset, len(data), flags=flags, cookie=cookie, data=data)


class OptionReply(NamedTuple):
    option: int
    code: int
    data: bytes


def option_replies(stream: bytes) -> list[OptionReply]:
    """Decode a whole stream of option replies; nothing may be left over."""
    found = []
    while stream:
        magic, number, code, length = struct.unpack_from(">QIII", stream)
        assert magic == 0x3E889045565A9
        assert len(stream) >= 20 + length
        found.append(OptionReply(number, code, stream[20 : 20 + length]))
        stream = stream[20 + length :]
    return found


class Answer(NamedTuple):
    """One reply to a request, all its chunks put together."""

    cookie: int
    errno: int
    data: bytes
    chunks: tuple[tuple[int, bytes], ...]  # (type, payload) of structured replies


def answers(stream: bytes, simple_reads: dict[int, int] | None = None) -> list[Answer]:
    """Decode a whole stream of replies, in the order in which they end.

    ``simple_reads`` (cookie to length) says which simple replies are followed by data.
    """
    found = []
    open_chunks: dict[int, list[tuple[int, bytes]]] = {}
    while stream:
        (magic,) = struct.unpack_from(">I", stream)
        if magic == 0x67446698:
            errno, cookie = struct.unpack_from(">IQ", stream, 4)
            length = (simple_reads or {}).get(cookie, 0) if errno == 0 else 0
            assert len(stream) >= 16 + length
            found.append(Answer(cookie, errno, stream[16 : 16 + length], ()))
            stream = stream[16 + length :]
            continue
        assert magic == 0x668E33EF, hex(magic)
        flags, kind, cookie, length = struct.unpack_from(">HHQI", stream, 4)
        assert len(stream) >= 20 + length
        chunks = open_chunks.setdefault(cookie, [])
        chunks.append((kind, stream[20 : 20 + length]))
        stream = stream[20 + length :]
        if flags & 1:
            found.append(_structured(cookie, open_chunks.pop(cookie)))
    assert not open_chunks, "a reply without its last chunk"
    return found


def _structured(cookie: int, chunks: list[tuple[int, bytes]]) -> Answer:
    errno, data = 0, b""
    for kind, payload in chunks:
        if kind & 0x8000:
            errno, size = struct.unpack_from(">IH", payload)
            assert len(payload) == 6 + size
            assert errno
        elif kind == 1:
            data += payload[8:]
    return Answer(cookie, errno, data, tuple(chunks))


def descriptors(answer: Answer) -> dict[int, list[tuple[int, int]]]:
    """Context id to [(length, status)] of a BLOCK_STATUS answer."""
    found = {}
    for kind, payload in answer.chunks:
        assert kind == 5
        (context,) = struct.unpack_from(">I", payload)
        assert len(payload) > 4
        assert len(payload) % 8 == 4
        found[context] = list(struct.iter_unpack(">II", payload[4:]))
    return found  # type: ignore[return-value]
