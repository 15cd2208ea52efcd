"""The stream of a postcopy migration: made from what was saved, and its requests for pages."""

from __future__ import annotations

import io
import random
import struct

import pytest

from blockvault.errors import ToolFailed
from blockvault.vm import postcopy, stream
from blockvault.vm.stream import PAGE

MEMORY = 64 * PAGE
HEAD = b"QEVM\0\0\0\x03\x07" + struct.pack(">I", 10) + b"pc-q35-7.2"
SHARED = b"\x0fx-ignore-shared"
CAPABILITIES = b"\x05\x1aconfiguration/capabilities" + struct.pack(">II", 1, 1) + SHARED
ROM = bytes(range(256)) * 16
DEVICES = b"\x04" + bytes(3) + b"\x05\x05timer" + bytes(8) + b"ticks\x00\x06\x7e" + bytes(4)
SECTION = 2


def saved(description: bytes = b'{"devices": []}', *, ram: int = MEMORY) -> bytes:
    """A state of devices as QEMU saves it when memory is shared: blocks have addresses."""
    blocks = (("ram", ram, 0), ("pc.bios", PAGE, 0xFFFC0000))
    listed = b"".join(
        stream.named(name) + struct.pack(">QQ", size, address) for name, size, address in blocks
    )
    begin = b"\x01" + struct.pack(">I", SECTION) + b"\x03ram" + struct.pack(">II", 0, 4)
    total = struct.pack(">Q", ram + PAGE | 4)
    page = struct.pack(">Q", 8) + stream.named("pc.bios") + ROM
    foot = stream.EOS + stream.footer(SECTION)
    parts = foot + stream.part_of(SECTION) + page + foot + stream.part_of(SECTION, last=True) + foot
    tail = DEVICES + b"\0\x06" + struct.pack(">I", len(description)) + description
    return HEAD + CAPABILITIES + begin + total + listed + parts + tail


def commands(data: bytes) -> dict[int, bytes]:
    """The body of each command that a stream has, by its kind."""
    found, at = {}, 0
    while (at := data.find(b"\x08\0", at)) >= 0:
        kind, length = struct.unpack_from(">HH", data, at + 1)
        if kind <= 7 and length < 100:
            found.setdefault(kind, data[at + 5 : at + 5 + length])
        at += 1
    return found


def test_the_opening_has_all_that_was_saved_but_the_memory() -> None:
    opened = postcopy.opening(saved(), MEMORY)
    assert (opened.block, opened.section) == ("ram", SECTION)
    assert opened.data.startswith(HEAD + b"\x08")
    assert b"x-ignore-shared" not in opened.data
    assert ROM in opened.data
    found = commands(opened.data)
    assert found[3] == struct.pack(">QQ", PAGE, PAGE)
    assert found[6] == b"\0\x03ram\0" + struct.pack(">QQ", 0, MEMORY)
    (length,) = struct.unpack(">I", found[7])
    assert opened.data[-length:] == b"\x08\0\x04\0\0" + DEVICES + b"\x08\0\x05\0\0"


def test_a_state_without_a_description() -> None:
    whole = saved(b"")
    bare = whole[: whole.rindex(b"\0\x06")] + b"\0"
    assert postcopy.opening(bare, MEMORY).data == postcopy.opening(saved(), MEMORY).data


@pytest.mark.parametrize("size", [MEMORY - PAGE, 2 * MEMORY])
def test_memory_of_another_size(size: int) -> None:
    with pytest.raises(ToolFailed, match="which memory is shared"):
        postcopy.opening(saved(), size)


def test_two_blocks_that_may_be_the_shared_one() -> None:
    with pytest.raises(ToolFailed, match="which memory is shared"):
        postcopy.opening(saved(ram=PAGE), PAGE)


def test_a_state_that_is_cut() -> None:
    whole = saved()
    for cut in (0, 9, 40, len(HEAD) + 80, whole.index(ROM) + 7):
        with pytest.raises(ToolFailed) as caught:
            postcopy.opening(whole[:cut], MEMORY)
        assert caught.value.reason == "bad-stream"


def test_pages_arrive_where_they_belong() -> None:
    """What is sent is read as QEMU does, by the reader of streams that come out of it."""
    rng = random.Random(1)
    pages = [(n * PAGE, rng.randbytes(PAGE) if n % 3 else bytes(PAGE)) for n in (5, 6, 2, 63)]
    opened = postcopy.opening(saved(), MEMORY)
    sent = postcopy.part(opened, pages[:2]) + postcopy.part(opened, pages[2:])
    source = io.BytesIO(stream.EOS + stream.footer(SECTION) + sent + postcopy.closing(opened))
    found: dict[int, bytes] = {}
    layout = stream.Layout("", SECTION, (("ram", MEMORY),))
    stream.Pages(source, layout, found.__setitem__).read()
    assert found == dict(pages)
    assert source.read() == b"\0"


def message(kind: int, body: bytes) -> bytes:
    return struct.pack(">HH", kind, len(body)) + body


def test_requests_until_all_is_there() -> None:
    first = message(3, struct.pack(">QI", 5 * PAGE, PAGE) + stream.named("ram"))
    again = message(4, struct.pack(">QI", 9 * PAGE, 2 * PAGE))
    pong = message(2, struct.pack(">I", 1))
    source = io.BytesIO(first + pong + again + message(1, bytes(4)) + b"more")
    assert list(postcopy.requests(source)) == [(5 * PAGE, PAGE), (9 * PAGE, 2 * PAGE)]


@pytest.mark.parametrize("said", [b"", b"\0", message(4, struct.pack(">QI", 0, PAGE)), b"\0\4\0"])
def test_a_qemu_that_goes_away(said: bytes) -> None:
    with pytest.raises(ToolFailed) as caught:
        list(postcopy.requests(io.BytesIO(said)))
    assert caught.value.reason == "qemu-gone"


def test_a_qemu_that_failed() -> None:
    with pytest.raises(ToolFailed, match="could not take"):
        list(postcopy.requests(io.BytesIO(message(1, struct.pack(">I", 1)))))
