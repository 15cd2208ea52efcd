"""A volume as plain bytes, and what a device must say if it holds them.

Nothing here knows how a vault stores anything: writes replace bytes, zeros are zeros, and a trim
clears the whole blocks of its range, the last one of the volume included.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Protocol

from blockvault.device import Device

BLOCK = 4096


class Content(Protocol):
    """What ``Disk`` needs of a device, or of another disk."""

    def write(self, offset: int, data: bytes) -> None: ...
    def zero(self, offset: int, length: int) -> None: ...
    def trim(self, offset: int, length: int) -> None: ...


class Disk:
    """The bytes of one volume; what is done to it is done to ``device`` too, if there is one."""

    def __init__(self, size: int, device: Content | None = None, block: int = BLOCK) -> None:
        self.data = bytearray(size)
        self.device = device
        self.block = block

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data
        if self.device is not None:
            self.device.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)
        if self.device is not None:
            self.device.zero(offset, length)

    def trim(self, offset: int, length: int) -> None:
        start, end = -(-offset // self.block) * self.block, offset + length
        stop = end if end == len(self.data) else end // self.block * self.block
        if start < stop:
            self.data[start:stop] = bytes(stop - start)
        if self.device is not None:
            self.device.trim(offset, length)


def noise(seed: object, length: int) -> bytes:
    """Bytes that differ from seed to seed."""
    return random.Random(repr(seed)).randbytes(length)


def whole(device: Device) -> bytes:
    return device.read(0, device.size)


def check_device(device: Device, expected: bytes | bytearray, rng: random.Random) -> None:
    """All reads and all extents of a device agree with the bytes that it must hold."""
    assert device.size == len(expected)
    assert whole(device) == expected
    for _ in range(4):
        offset = rng.randrange(device.size + 1)
        length = rng.randrange(device.size - offset + 1)
        assert device.read(offset, length) == expected[offset : offset + length]
        check_extents(device, expected, offset, length)
    check_extents(device, expected, 0, device.size)


def check_extents(device: Device, expected: bytes | bytearray, offset: int, length: int) -> None:
    """The extents cover the range, alternate, and call nothing zero that is not."""
    runs = list(device.extents(offset, length))
    assert sum(run.length for run in runs) == length
    at = offset
    for run in runs:
        assert run.offset == at
        at += run.length
        if run.zero:
            assert not any(expected[run.offset : at])
    assert all(run.length > 0 for run in runs)
    assert all(a.zero != b.zero for a, b in pairwise(runs))


def tight(device: Device, expected: bytes | bytearray, block: int = BLOCK) -> bool:
    """Whether every block of zeros lies in a zero extent."""
    data = {
        number
        for run in device.extents(0, device.size)
        if not run.zero
        for number in range(run.offset // block, -(-(run.offset + run.length) // block))
    }
    return data == {at // block for at in range(0, len(expected), block)
                    if any(expected[at : at + block])}  # fmt: skip
