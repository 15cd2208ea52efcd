"""QEMU's migration stream taken apart: pages to their place in a file, the rest as bytes.

    head    magic, version, the machine's name                          kept as it is
    ram     START: names and sizes of the blocks; PART ..., END: pages  ── taken apart
    tail    the state of processors and devices, their description      kept as it is

A page follows 8 bytes that say where it goes, so the stream as such shares nothing with earlier
ones.  Pages may come several times while the guest runs: the last one counts.  All blocks lie one
after another in one file, the guest's main memory first, so that they share with everything else.
The format is that of QEMU's ``migration/savevm.c`` and ``migration/ram.c``; numbers are big endian.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from blockvault.errors import Damaged, ToolFailed

PAGE = 4096
_MAGIC = b"QEVM\0\0\0\x03"
_START, _PART, _END = 1, 2, 3
_FOOTER = 0x7E
_RAM = b"\x03ram" + struct.pack(">II", 0, 4)
"""Name, instance and version of the section that holds memory."""
_ZERO, _SIZES, _PAGE, _EOS, _SAME_BLOCK = 0x02, 0x04, 0x08, 0x10, 0x20
_FLAGS = PAGE - 1
_LONGEST_HEAD = 1 << 16
_ZEROS = bytes(PAGE)


class Source(Protocol):
    """Where a stream is read from: ``read`` gives less than it was asked for only at the end."""

    def read(self, size: int = -1, /) -> bytes: ...


Write = Callable[[int, bytes], None]
Allocate = Callable[[int], Write]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a stream says before the first page; ``head`` in hex, ``blocks`` as (name, bytes)."""

    head: str
    section: int
    blocks: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        return sum(size for _, size in self.blocks)

    def places(self) -> dict[str, int]:
        """Where each block begins in the file."""
        places, at = {}, 0
        for name, size in self.blocks:
            places[name] = at
            at += size
        return places

    def encode(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Layout:
        try:
            value: dict[str, Any] = json.loads(data)
            bytes.fromhex(value["head"])
            blocks = tuple((str(name), int(size)) for name, size in value["blocks"])
            return cls(value["head"], int(value["section"]), blocks)
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(f"the layout of a saved memory cannot be read: {error}") from None


def take_apart(stream: Source, allocate: Allocate) -> tuple[Layout, bytes]:
    """Read a stream to its end; return its layout and tail.

    ``allocate(size)`` is called once, before the first page, and gives the function that writes
    pages.  ``ToolFailed`` when the stream ends early or has what is not known here.
    """
    try:
        head, section = _head(stream)
        blocks = _sizes(stream)
        layout = Layout(head.hex(), section, blocks)
        _Pages(stream, layout, allocate(layout.size)).read()
        tail = stream.read()
    except EOFError:
        raise ToolFailed("QEMU's stream ended early", kind="bad-stream") from None
    except UnicodeDecodeError:
        raise ToolFailed("QEMU's stream names a block in no text", kind="bad-stream") from None
    if not tail:
        raise ToolFailed("QEMU's stream has no state of devices", kind="bad-stream")
    return layout, tail


def _head(stream: Source) -> tuple[bytes, int]:
    """Everything up to the section of memory, and that section's number."""
    head = stream.read(len(_MAGIC))
    if head != _MAGIC:
        raise ToolFailed("what QEMU sent is no migration stream", kind="bad-stream")
    while not head.endswith(_RAM):
        byte = stream.read(1)
        if not byte or len(head) > _LONGEST_HEAD:
            raise ToolFailed("QEMU's stream has no memory", kind="bad-stream")
        head += byte
    start = len(head) - len(_RAM) - 5
    if head[start] != _START:
        raise _unknown("section", head[start])
    return head[:start], int.from_bytes(head[start + 1 : start + 5], "big")


def _sizes(stream: Source) -> tuple[tuple[str, int], ...]:
    total = _number(stream, 8)
    if total & _FLAGS != _SIZES:
        raise _unknown("flags", total & _FLAGS)
    left, blocks = total & ~_FLAGS, []
    while left > 0:
        name = _exactly(stream, _number(stream, 1)).decode()
        size = _number(stream, 8)
        if not 0 < size <= left or size % PAGE:
            raise _unknown("size of a block", size)
        blocks.append((name, size))
        left -= size
    return tuple(blocks)


class _Pages:
    """The rest of the section of memory: the end of START, any number of PARTs, END."""

    def __init__(self, stream: Source, layout: Layout, write: Write) -> None:
        self._stream = stream
        self._section = layout.section
        self._places = layout.places()
        self._ends = {name: self._places[name] + size for name, size in layout.blocks}
        self._write = write
        self._block = ""

    def read(self) -> None:
        kind = _START
        while True:
            self._part()
            footer = _exactly(self._stream, 5)
            if footer != bytes([_FOOTER]) + self._section.to_bytes(4, "big"):
                raise _unknown("footer", footer[0])
            if kind == _END:
                return
            kind = _number(self._stream, 1)
            if kind not in (_PART, _END):
                raise _unknown("section", kind)
            if _number(self._stream, 4) != self._section:
                raise _unknown("section of number", kind)

    def _part(self) -> None:
        read, write = self._stream.read, self._write
        while True:
            header = _number(self._stream, 8)
            flags = header & _FLAGS
            if flags == _EOS:
                return
            if not flags & _SAME_BLOCK:
                self._block = _exactly(self._stream, _number(self._stream, 1)).decode()
            at = self._place(header & ~_FLAGS)
            what = flags & ~_SAME_BLOCK
            if what == _PAGE:
                page = read(PAGE)
                if len(page) < PAGE:
                    raise EOFError
                write(at, page)
            elif what == _ZERO:
                write(at, _exactly(self._stream, 1) * PAGE)
            else:
                raise _unknown("flags", flags)

    def _place(self, offset: int) -> int:
        at = self._places.get(self._block)
        if at is None or at + offset >= self._ends[self._block]:
            raise ToolFailed(
                f"QEMU's stream has a page outside of its block '{self._block}'", kind="bad-stream"
            )
        return at + offset


def put_together(layout: Layout, read: Callable[[int, int], bytes], tail: bytes) -> Iterator[bytes]:
    """The stream again, each page once; ``read(offset, length)`` is the memory."""
    footer = bytes([_FOOTER]) + layout.section.to_bytes(4, "big")
    number = layout.section.to_bytes(4, "big")
    end = _EOS.to_bytes(8, "big")
    yield bytes.fromhex(layout.head) + bytes([_START]) + number + _RAM
    yield (layout.size | _SIZES).to_bytes(8, "big")
    for name, size in layout.blocks:
        yield _named(name) + size.to_bytes(8, "big")
    yield end + footer + bytes([_END]) + number
    places = layout.places()
    for name, size in layout.blocks:
        yield from _pages(name, size, places[name], read)
    yield end + footer + tail


def _pages(name: str, size: int, place: int, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    label, same = _named(name), 0
    step = 256 * PAGE
    for start in range(0, size, step):
        data = read(place + start, min(step, size - start))
        parts = []
        for at in range(0, len(data), PAGE):
            page = data[at : at + PAGE]
            kind, body = (_ZERO, b"\0") if page == _ZEROS else (_PAGE, page)
            parts += [(start + at | kind | same).to_bytes(8, "big"), label, body]
            label, same = b"", _SAME_BLOCK
        yield b"".join(parts)


def _named(name: str) -> bytes:
    return bytes([len(name.encode())]) + name.encode()


def _exactly(stream: Source, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _number(stream: Source, length: int) -> int:
    return int.from_bytes(_exactly(stream, length), "big")


def _unknown(what: str, value: int) -> ToolFailed:
    return ToolFailed(
        f"QEMU's stream has a {what} that is not known here: {value:#x}", kind="bad-stream"
    )
