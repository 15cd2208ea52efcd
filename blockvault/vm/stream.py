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

import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from blockvault.errors import Damaged, ToolFailed

PAGE = 4096
_MAGIC = b"QEVM\0\0\0\x03"
_START, _PART, _END = 1, 2, 3
_FOOTER = 0x7E
_RAM = b"\x03ram" + struct.pack(">II", 0, 4)
"""Name, instance and version of the section that holds memory."""
ZERO, _SIZES, FULL, _EOS, SAME_BLOCK = 0x02, 0x04, 0x08, 0x10, 0x20
"""Flags of a record: a page of zeros, a list of blocks, a page, the end, the block as before."""
EOS = _EOS.to_bytes(8, "big")
_FLAGS = PAGE - 1
_LONGEST_HEAD = 1 << 16
_ZEROS = bytes(PAGE)


class Source(Protocol):
    """Where a stream is read from: ``read`` gives less than it was asked for only at the end."""

    def read(self, size: int = -1, /) -> bytes: ...


Write = Callable[[int, bytes], None]
Allocate = Callable[[int], Write]


class Layout(NamedTuple):
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
        return json.dumps(self._asdict(), indent=1).encode() + b"\n"

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
    with understood():
        head, section = read_head(stream)
        layout = Layout(head.hex(), section, read_blocks(stream))
        Pages(stream, layout, allocate(layout.size)).read()
        tail = stream.read()
    if not tail:
        raise ToolFailed("QEMU's stream has no state of devices", kind="bad-stream")
    return layout, tail


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """What cannot be read inside of the block is ``ToolFailed``."""
    try:
        yield
    except EOFError:
        raise ToolFailed("QEMU's stream ended early", kind="bad-stream") from None
    except UnicodeDecodeError:
        raise ToolFailed("QEMU's stream names a block in no text", kind="bad-stream") from None


def read_head(stream: Source) -> tuple[bytes, int]:
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


def read_blocks(stream: Source, *, addresses: bool = False) -> tuple[tuple[str, int], ...]:
    """Names and sizes of the blocks of memory; with ``x-ignore-shared`` they have addresses."""
    total = _number(stream, 8)
    if total & _FLAGS != _SIZES:
        raise _unknown("flags", total & _FLAGS)
    left, blocks = total & ~_FLAGS, []
    while left > 0:
        name = _exactly(stream, _number(stream, 1)).decode()
        size = _number(stream, 8)
        if addresses:
            _number(stream, 8)
        if not 0 < size <= left or size % PAGE:
            raise _unknown("size of a block", size)
        blocks.append((name, size))
        left -= size
    return tuple(blocks)


class Pages:
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
            found = _exactly(self._stream, 5)
            if found != footer(self._section):
                raise _unknown("footer", found[0])
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
            if not flags & SAME_BLOCK:
                self._block = _exactly(self._stream, _number(self._stream, 1)).decode()
            at = self._place(header & ~_FLAGS)
            what = flags & ~SAME_BLOCK
            if what == FULL:
                page = read(PAGE)
                if len(page) < PAGE:
                    raise EOFError
                write(at, page)
            elif what == ZERO:
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
    yield bytes.fromhex(layout.head) + begin(layout.section, layout.blocks)
    yield EOS + footer(layout.section) + part_of(layout.section, last=True)
    places = layout.places()
    for name, size in layout.blocks:
        yield from _pages(name, size, places[name], read)
    yield EOS + footer(layout.section) + tail


def begin(section: int, blocks: Sequence[tuple[str, int]]) -> bytes:
    """The beginning of the section of memory: which blocks there are."""
    sizes = b"".join(named(name) + size.to_bytes(8, "big") for name, size in blocks)
    total = sum(size for _, size in blocks) | _SIZES
    return bytes([_START]) + section.to_bytes(4, "big") + _RAM + total.to_bytes(8, "big") + sizes


def part_of(section: int, *, last: bool = False) -> bytes:
    """What some pages of a section begin with."""
    return bytes([_END if last else _PART]) + section.to_bytes(4, "big")


def footer(section: int) -> bytes:
    """What every part of a section ends with."""
    return bytes([_FOOTER]) + section.to_bytes(4, "big")


def _pages(name: str, size: int, place: int, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    label, same = named(name), 0
    step = 256 * PAGE
    for start in range(0, size, step):
        data = read(place + start, min(step, size - start))
        parts = []
        for at in range(0, len(data), PAGE):
            page = data[at : at + PAGE]
            kind, body = (ZERO, b"\0") if page == _ZEROS else (FULL, page)
            parts += [(start + at | kind | same).to_bytes(8, "big"), label, body]
            label, same = b"", SAME_BLOCK
        yield b"".join(parts)


def named(name: str) -> bytes:
    """A name behind its length."""
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
