"""Migration streams: taken apart and put together; what is cut or unknown is refused."""

from __future__ import annotations

import io
import random

import pytest

from blockvault.errors import Damaged, ToolFailed
from blockvault.vm import stream
from blockvault.vm.stream import PAGE, Layout

BLOCKS = (("pc.ram", 40 * PAGE), ("pc.bios", 4 * PAGE), ("/rom@etc/acpi/tables", 2 * PAGE))
LAYOUT = Layout((b"QEVM\0\0\0\x03" + b"\x07\0\0\0\x03q35").hex(), 2, BLOCKS)
TAIL = b"\x04devices\0"


def memory(seed: int) -> bytes:
    rng = random.Random(seed)
    pages = [rng.randbytes(PAGE) if rng.random() < 0.5 else bytes(PAGE) for _ in range(46)]
    return b"".join(pages)


def made(data: bytes) -> bytes:
    read = lambda offset, length: data[offset : offset + length]  # noqa: E731
    return b"".join(stream.put_together(LAYOUT, read, TAIL))


def taken(data: bytes) -> tuple[Layout, bytes, bytes]:
    found = bytearray()

    def allocate(size: int) -> stream.Write:
        found.extend(bytes(size))

        def write(at: int, page: bytes) -> None:
            found[at : at + len(page)] = page

        return write

    layout, tail = stream.take_apart(io.BytesIO(data), allocate)
    return layout, tail, bytes(found)


@pytest.mark.parametrize("seed", range(3))
def test_apart_and_together(seed: int) -> None:
    data = memory(seed)
    assert taken(made(data)) == (LAYOUT, TAIL, data)


def test_a_page_that_comes_again_counts() -> None:
    data = memory(1)
    whole = made(data)
    footer = b"\x7e" + (2).to_bytes(4, "big")
    start = whole.index(footer) + 5
    page = b"n" * PAGE
    part = b"\x02" + (2).to_bytes(4, "big") + (3 * PAGE | 8).to_bytes(8, "big") + b"\x06pc.ram"
    end = (0x10).to_bytes(8, "big") + footer
    # First the new content, then what the rest of the stream says of the same page.
    layout, tail, found = taken(whole[:start] + part + page + end + whole[start:])
    assert (layout, tail, found) == (LAYOUT, TAIL, data)


@pytest.mark.parametrize("cut", [0, 5, 12, 30, 60, 100, 4200, 60_000])
def test_a_stream_that_ends_early(cut: int) -> None:
    whole = made(memory(2))
    assert cut < len(whole)
    with pytest.raises(ToolFailed) as caught:
        taken(whole[:cut])
    assert caught.value.reason == "bad-stream"


@pytest.mark.parametrize("flags", [0x40, 0x80, 0x100])
def test_pages_of_unknown_forms(flags: int) -> None:
    whole = bytearray(made(memory(3)))
    at = whole.index(b"\x06pc.ram", 120) - 8
    whole[at : at + 8] = flags.to_bytes(8, "big")
    with pytest.raises(ToolFailed, match="not known"):
        taken(bytes(whole))


def test_a_page_outside_of_its_block() -> None:
    whole = bytearray(made(memory(3)))
    at = whole.index(b"\x06pc.ram", 120) - 8
    whole[at : at + 8] = (40 * PAGE | 0x02).to_bytes(8, "big")
    with pytest.raises(ToolFailed, match="outside"):
        taken(bytes(whole))


def test_noise() -> None:
    rng = random.Random(4)
    whole = made(memory(4))
    for _ in range(300):
        spoilt = bytearray(whole)
        spoilt[rng.randrange(400)] ^= 1 << rng.randrange(8)
        try:
            taken(bytes(spoilt))
        except ToolFailed as error:
            assert error.reason == "bad-stream"  # noqa: PT017


def test_layouts() -> None:
    assert Layout.decode(LAYOUT.encode()) == LAYOUT
    for text in (b"", b"[]", b"{}", b'{"head": "zz", "section": 1, "blocks": []}'):
        with pytest.raises(Damaged):
            Layout.decode(text)
