"""Replies of the transmission phase, as pieces of bytes for one send.

Structured replies carry what READ and BLOCK_STATUS return and every error; a success that has
nothing else to say stays the 16 bytes of a simple reply, which the protocol allows and which can
be made for a whole batch with one ``join``.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockvault.nbd.wire import (
    CHUNK,
    CHUNK_MAGIC,
    CONTEXT_ID,
    DATA_CHUNK,
    DESCRIPTOR,
    ERROR_CHUNK,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    Chunk,
    ChunkFlag,
    Errno,
)

Piece = bytes | memoryview
Content = Piece | list[Piece]
"""What was read of a range, in one piece or in several."""
OK_HEAD = SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, Errno.OK, b"")[:-8]
ERROR_SIZE = 4 + 2
OFFSET_SIZE = 8


def successes(cookies: Sequence[bytes]) -> bytes:
    """Simple replies without data, one for each cookie."""
    return OK_HEAD + OK_HEAD.join(cookies)


def failure(cookie: bytes, errno: Errno, structured: bool) -> bytes:
    """An error, in the form that a reply to any command may have."""
    if not structured:
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, errno, cookie)
    return ERROR_CHUNK.pack(CHUNK_MAGIC, ChunkFlag.DONE, Chunk.ERROR, cookie, ERROR_SIZE, errno, 0)


def data_replies(
    cookies: Sequence[bytes],
    ranges: Sequence[tuple[int, int]],
    contents: Sequence[Content],
    structured: bool,
) -> list[Piece]:
    """Replies to READs, headers and data by turns; ``ValueError`` if data are not as long as asked.

    A wrong length must be found before anything is sent: the client would take the next header
    for data.
    """
    pieces: list[Piece] = []
    if structured:
        pack = DATA_CHUNK.pack
        magic, done, kind = CHUNK_MAGIC, int(ChunkFlag.DONE), int(Chunk.OFFSET_DATA)
        heads = [
            pack(magic, done, kind, cookie, length + OFFSET_SIZE, offset)
            for cookie, (offset, length) in zip(cookies, ranges, strict=True)
        ]
    else:
        heads = [OK_HEAD + cookie for cookie in cookies]
    for head, (_, length), data in zip(heads, ranges, contents, strict=True):
        pieces.append(head)
        if isinstance(data, list):
            read = sum(map(len, data))
            pieces += data
        else:
            read = len(data)
            pieces.append(data)
        if read != length:
            raise ValueError(f"{read} bytes read instead of {length}")
    return pieces


def empty_read(cookie: bytes, structured: bool) -> bytes:
    """The answer to a READ of no bytes: content chunks must not be empty, so there is none."""
    if not structured:
        return OK_HEAD + cookie
    return CHUNK.pack(CHUNK_MAGIC, ChunkFlag.DONE, Chunk.NONE, cookie, 0)


def block_status(cookie: bytes, answers: Sequence[tuple[int, list[tuple[int, int]]]]) -> bytes:
    """One chunk for each (context id, descriptors), the last marked as such."""
    chunks = []
    for place, (context, descriptors) in enumerate(answers, start=1):
        payload = CONTEXT_ID.pack(context) + b"".join(DESCRIPTOR.pack(*d) for d in descriptors)
        flags = ChunkFlag.DONE if place == len(answers) else 0
        head = CHUNK.pack(CHUNK_MAGIC, flags, Chunk.BLOCK_STATUS, cookie, len(payload))
        chunks.append(head + payload)
    return b"".join(chunks)
