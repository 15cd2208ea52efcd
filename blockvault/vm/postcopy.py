"""A full snapshot as the stream of a postcopy migration: the guest runs before its memory is there.

    opening   head, ADVISE        what was saved, in the form that postcopy wants
              START, ROM pages    memory's blocks; what does not lie in the shared file
              PACKAGED            LISTEN, the state of devices, RUN: from here on the guest runs
    part      pages               those that the guest waits for first
    closing   END                 whatever was not sent is zero

QEMU takes each page that the guest touches and that is not there yet as a *request* to us, which
comes back through the same socket.  The formats are those of QEMU's ``migration/savevm.c``,
``ram.c`` and ``migration.c``; numbers are big endian.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from blockvault.errors import ToolFailed
from blockvault.vm import stream
from blockvault.vm.stream import EOS, PAGE, Layout, Pages, Source

_COMMAND, _END_OF_STREAM, _DESCRIPTION = 0x08, 0x00, 0x06
_OPEN_RETURN_PATH, _ADVISE, _LISTEN, _RUN, _DISCARD, _PACKAGED = 1, 3, 4, 5, 6, 7
_SHUT, _REQUEST_IN, _REQUEST = 1, 3, 4
_MAGIC_SIZE = 8
_RANGE = struct.Struct(">QI")
ZEROS = bytes(PAGE)


class Opening(NamedTuple):
    """The stream up to the moment in which the guest runs, and how pages are named after it."""

    data: bytes
    section: int
    block: str
    """The block of memory that lies in the shared file, from its beginning to its end."""


def opening(saved: bytes, size: int) -> Opening:
    """What the state of devices of a machine with ``size`` bytes of shared memory begins with.

    ``ToolFailed`` where it has what is not known here.
    """
    source = io.BytesIO(saved)
    with stream.understood():
        head, section = stream.read_head(source)
        blocks = stream.read_blocks(source, addresses=True)
        roms_begin = source.tell()
        Pages(source, Layout("", section, blocks), lambda at, page: None).read()
    roms = saved[roms_begin : source.tell()]
    devices = _without_description(saved[source.tell() :])
    shared = [name for name, length in blocks if length == size]
    if len(shared) != 1:
        raise ToolFailed("the saved state does not say which memory is shared", kind="bad-stream")
    # There is nothing to discard.  But a QEMU that was told of nothing takes what follows for
    # memory of a guest that does not run yet, and waits for pages that it has not read (7.2).
    everything = b"\0" + stream.named(shared[0]) + struct.pack(">BQQ", 0, 0, size)
    packaged = _command(_LISTEN) + devices + _command(_RUN)
    pages = struct.pack(">QQ", PAGE, PAGE)
    data = [
        _without_capabilities(head),
        *(_command(_OPEN_RETURN_PATH), _command(_ADVISE, pages)),
        *(stream.begin(section, blocks), roms, _command(_DISCARD, everything)),
        *(_command(_PACKAGED, struct.pack(">I", len(packaged))), packaged),
    ]
    return Opening(b"".join(data), section, shared[0])


def part(opened: Opening, pages: Iterable[tuple[int, bytes]]) -> bytes:
    """Some pages, each behind its offset in the memory."""
    records, name, same = [stream.part_of(opened.section)], stream.named(opened.block), 0
    for at, page in pages:
        kind, body = (stream.FULL, page) if page != ZEROS else (stream.ZERO, b"\0")
        records += [(at | kind | same).to_bytes(8, "big"), name, body]
        name, same = b"", stream.SAME_BLOCK
    return b"".join([*records, EOS, stream.footer(opened.section)])


def closing(opened: Opening) -> bytes:
    """The end: QEMU no longer waits for any page."""
    end = stream.part_of(opened.section, last=True)
    return end + EOS + stream.footer(opened.section) + bytes([_END_OF_STREAM])


def requests(source: Source) -> Iterator[tuple[int, int]]:
    """(offset, length) of what the guest waits for, until QEMU has all of its memory.

    ``ToolFailed`` when it could not be loaded, or QEMU went away before.
    """
    while True:
        head = source.read(4)
        if len(head) < 4:
            raise ToolFailed("QEMU went away before its memory was there", kind="qemu-gone")
        kind, length = struct.unpack(">HH", head)
        body = source.read(length)
        if kind in (_REQUEST, _REQUEST_IN):
            yield _RANGE.unpack_from(body)
        elif kind == _SHUT:
            if any(body):
                raise ToolFailed("QEMU could not take the memory that it was sent")
            return


def _command(kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">BHH", _COMMAND, kind, len(body)) + body


def _without_capabilities(head: bytes) -> bytes:
    """Magic, version and the machine's name: that memory was shared when it was saved does not
    hold for how it comes back."""
    (length,) = struct.unpack_from(">I", head, _MAGIC_SIZE + 1)
    return head[: _MAGIC_SIZE + 5 + length]


def _without_description(tail: bytes) -> bytes:
    """The sections of devices; behind them come an end mark, and their description as JSON."""
    at = len(tail)
    while (at := tail.rfind(bytes([_END_OF_STREAM, _DESCRIPTION]), 0, at + 1)) >= 0:
        if int.from_bytes(tail[at + 2 : at + 6], "big") == len(tail) - at - 6:
            return tail[:at]
    return tail.removesuffix(bytes([_END_OF_STREAM]))
