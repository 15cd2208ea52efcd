"""The past as devices and files: read-only, seekable, and stable while the branch goes on."""

from __future__ import annotations

import io
import random

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest
from tests.oracle import BLOCK, Disk, check_device, noise

SIZE = 200 * BLOCK + 11


@pytest.fixture
def content(vault: Vault) -> bytes:
    with vault.session() as session:
        disk = Disk(SIZE, session.create_volume("v", SIZE))
        disk.write(7, noise(1, 100 * BLOCK))
        session.checkpoint()
        disk.write(64 * BLOCK, noise(2, 40 * BLOCK))
        disk.zero(10 * BLOCK, 3 * BLOCK)
    return bytes(disk.data)


def test_a_device_of_the_past(vault: Vault, content: bytes) -> None:
    device = vault.device("main")
    assert device.read_only
    check_device(device, content, random.Random(1))
    for change in (device.zero, device.trim):
        with pytest.raises(BadRequest, match="read-only"):
            change(0, 1)
    with pytest.raises(BadRequest, match="read-only"):
        device.write(0, b"x")
    device.flush()


def test_an_open_device_stays_as_it_was(vault: Vault, content: bytes) -> None:
    device = vault.device("main")
    with vault.session() as session:
        session.device().write(0, noise(3, SIZE))
        session.snapshot()
        session.device().zero(0, SIZE)
    check_device(device, content, random.Random(2))


def test_whole_leaves_are_the_same_bytes(vault: Vault, content: bytes) -> None:
    vault.tag("t")
    device = vault.device("t")
    for first in (0, 32, 96, 160):
        for stop in (first + 32, 192):
            if first < stop:
                at, length = first * BLOCK, (stop - first) * BLOCK
                assert device.read(at, length) == content[at : at + length]


def test_long_ranges_come_in_pieces(vault: Vault, content: bytes) -> None:
    leaf = 32 * BLOCK
    vault.tag("t")
    for device in (vault.device("t"), vault.device("main")):
        ranges = [(0, leaf), (5, 3 * leaf), (7 * BLOCK, 3), (SIZE - leaf, leaf)]
        found = device.read_many(ranges)
        assert [type(each) for each in found] == [list, list, bytes, list]
        assert [b"".join(each) if isinstance(each, list) else each for each in found] == [
            content[at : at + length] for at, length in ranges
        ]


def test_a_file_of_the_past(vault: Vault, content: bytes) -> None:
    file = vault.open_volume("main")
    assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
    assert file.read() == content
    assert file.read(5) == b""
    assert file.seek(-20, io.SEEK_END) == SIZE - 20
    assert file.read(100) == content[-20:]
    assert file.seek(10) == file.tell() == 10
    assert file.seek(5, io.SEEK_CUR) == 15
    assert file.read(3) == content[15:18]
    assert file.seek(SIZE + 5) == SIZE + 5
    assert file.read(1) == b""
    with pytest.raises(ValueError, match="negative"):
        file.seek(-1)
    assert io.BufferedReader(vault.open_volume("main")).read() == content
