"""The payloads of options and of their replies: each is decoded completely, or refused.

``Cursor`` takes fields off an option's data and cannot run past their end; what it hands out is
checked (length of strings, UTF-8, no NUL, nothing left over), so the handshake deals in clean
values only.  The functions that build replies stand beside those that read requests.
"""

from __future__ import annotations

from typing import Protocol

from blockvault.nbd.wire import (
    COUNT,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    LENGTH,
    MAX_PAYLOAD,
    MAX_QUERIES,
    MAX_STRING,
    OPTION_REPLY,
    REPLY_MAGIC,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)

MIN_BLOCK = 1
MIN_PREFERRED = 512  # the protocol allows no less


class InvalidOption(Exception):
    """The data of an option are malformed; the message says how and may be sent to the peer."""


class Described(Protocol):
    """What a reply tells of an export; a volume has it before it is opened, an export after."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def read_only(self) -> bool: ...


class Cursor:
    """Takes fields off the front of ``data``."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        end = self._position + size
        if end > len(self._data):
            raise InvalidOption("the option is shorter than it says")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def u32(self) -> int:
        """The next four bytes as a number."""
        return int.from_bytes(self.take(LENGTH.size), "big")

    def u16(self) -> int:
        """The next two bytes as a number."""
        return int.from_bytes(self.take(COUNT.size), "big")

    def text(self) -> str:
        """A length and that many bytes of UTF-8."""
        return option_name(self.take(self.u32()))

    def end(self) -> None:
        """There must be nothing left."""
        if self._position != len(self._data):
            raise InvalidOption("the option is longer than it says")


def option_name(data: bytes) -> str:
    """A string of the protocol: at most 4,096 bytes of UTF-8 without NUL."""
    if len(data) > MAX_STRING:
        raise InvalidOption("a string is too long")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidOption("a string is not UTF-8") from None
    if "\0" in text:
        raise InvalidOption("a string contains NUL")
    return text


def info_option(data: bytes) -> tuple[str, frozenset[int]]:
    """Name and requested information types of INFO and GO."""
    cursor = Cursor(data)
    name = cursor.text()
    requested = frozenset(cursor.u16() for _ in range(cursor.u16()))
    cursor.end()
    return name, requested


def meta_option(data: bytes) -> tuple[str, list[str]]:
    """Export name and queries of LIST_META_CONTEXT and SET_META_CONTEXT."""
    cursor = Cursor(data)
    name = cursor.text()
    count = cursor.u32()
    if count > MAX_QUERIES:
        raise InvalidOption("too many queries")
    queries = [cursor.text() for _ in range(count)]
    cursor.end()
    return name, queries


def reply(option: int, code: Reply, data: bytes = b"") -> bytes:
    """One option reply."""
    return OPTION_REPLY.pack(REPLY_MAGIC, option, code, len(data)) + data


def server_reply(name: str, description: str) -> bytes:
    """One entry of the answer to LIST."""
    encoded = name.encode()
    data = LENGTH.pack(len(encoded)) + encoded + description.encode()
    return reply(Option.LIST, Reply.SERVER, data)


def info_replies(
    option: int,
    name: str,
    requested: frozenset[int],
    export: Described,
    flags: TransmissionFlag,
) -> bytes:
    """All INFO replies for an export; ``name`` is what the client called it."""
    infos = [INFO_EXPORT.pack(Info.EXPORT, export.size, flags)]
    if Info.NAME in requested or name != export.name:
        infos.append(COUNT.pack(Info.NAME) + export.name.encode())
    if Info.DESCRIPTION in requested and export.description:
        infos.append(COUNT.pack(Info.DESCRIPTION) + export.description.encode())
    if Info.BLOCK_SIZE in requested:
        preferred = max(export.block_size, MIN_PREFERRED)
        infos.append(INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, MIN_BLOCK, preferred, MAX_PAYLOAD))
    return b"".join(reply(option, Reply.INFO, info) for info in infos)


def transmission_flags(export: Described, structured: bool, settled: bool) -> TransmissionFlag:
    """What an export can do.

    Where its name is ``settled`` several connections are welcome: they share device and flush.
    With any other name each might see another state.
    """
    flags = (
        TransmissionFlag.HAS_FLAGS
        | TransmissionFlag.SEND_FLUSH
        | TransmissionFlag.SEND_FUA
        | TransmissionFlag.SEND_CACHE
    )
    if settled:
        flags |= TransmissionFlag.CAN_MULTI_CONN
    if export.read_only:
        flags |= TransmissionFlag.READ_ONLY
    else:
        flags |= TransmissionFlag.SEND_TRIM
        flags |= TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO
    if structured:
        flags |= TransmissionFlag.SEND_DF
    return flags
