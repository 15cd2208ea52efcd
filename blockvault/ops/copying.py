"""The data of a device to its places in a file, in an order that is cheap to read.

What was written together lies together in a frame, and a frame is decoded whole.  Leaves whose run
is known (``store.runs``) are cut out of their frames as they come, two threads reading ahead.  The
blocks of all others may lie anywhere: a disk that a guest wrote to at random has them in as many
frames as there are, and to read it in its own order would decode each frame again for every block.
So those are put off, and written frame by frame.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from blockvault.device import Device
from blockvault.errors import IOFailed, NoSpace
from blockvault.ids import ZERO_ID
from blockvault.model import tree
from blockvault.ops import Progress
from blockvault.ops.ahead import in_order
from blockvault.ops.reading import part

if TYPE_CHECKING:
    from blockvault.ops.reading import StateDevice
    from blockvault.store.runs import Leaf, Pieces

WINDOW = 4 << 20
"""Bytes of a device that are read together, whole leaves of any block size."""
_WRITE = 512 << 10
"""Bytes of one write.  For those of 2 MiB the kernel takes its largest free pages, which on a
virtual machine the host may have to find first: the same bytes cost three times as much."""
_READERS = 2
_PUT_OFF = 1 << 19
"""Blocks that are put off at most before they are written: some 100 bytes of memory each."""
_BYTES_AT_ONCE = 8 << 20
_PIECES = 1024


class Found(NamedTuple):
    """What was read of a window: stretches of data to be written, and leaves that are put off."""

    stretches: list[tuple[int, Pieces]]
    others: list[tuple[int, Leaf]]
    """With the number of the first block."""


def copy_out(
    device: StateDevice, fd: int, progress: Progress, start: int = 0, length: int | None = None
) -> int:
    """Write all that is not zero to its place in a file; return how many bytes that were.

    A range that is not the whole device begins and ends with a ``WINDOW``.
    Two threads read and decode ahead of the one that writes; the first error ends it all.
    ``OSError`` where the file takes no more: the caller says what is left then (``writing``).
    """
    done, stop = 0, device.size if length is None else start + length
    with ThreadPoolExecutor(_READERS, "read") as readers:
        put_off = _PutOff(device, fd, readers)
        windows = _windows(device, start, stop)
        for window, found in in_order(readers, partial(_read, device), windows):
            passed = min(window + WINDOW, device.size)
            for at, pieces in found.stretches:
                done += _write_within(device, fd, at, pieces)
            for first, leaf in found.others:
                put_off.add(first, leaf)
            if put_off.blocks >= _PUT_OFF:
                done += put_off.write(partial(_report, progress, device, passed))
            _report(progress, device, passed, put_off.blocks)
        done += put_off.write(partial(_report, progress, device, stop))
    progress(stop, device.size)
    return done


def write_ranges(
    device: Device,
    fd: int,
    ranges: Iterable[tuple[int, int]],
    report: Callable[[int], None] = lambda done: None,
) -> int:
    """Write ranges of a device to their places as they lie, zeros too; return how many bytes.

    For few of them, or short ones.  ``report`` is told how many bytes are done.
    """
    done = 0
    for offset, length in ranges:
        for at in range(offset, offset + length, WINDOW):
            count = min(WINDOW, offset + length - at)
            write_at(fd, at, device.read(at, count))
            done += count
            report(done)
    return done


def _report(progress: Progress, device: Device, passed: int, put_off: int) -> None:
    """Tell how far the copy is: ``passed`` bytes, but for so many blocks that are put off."""
    blocks = -(-passed // device.block_size) - put_off
    progress(min(blocks * device.block_size, device.size), device.size)


# -- in the order of the device ----------------------------------------------------------------


def _windows(device: StateDevice, start: int, stop: int) -> Iterator[int]:
    """Where the windows of a range begin in which there may be data."""
    size = device.block_size
    leaves = device.leaves_with_data(start // size, -(-stop // size))
    for window, _ in groupby(leaf * tree.FANOUT * size // WINDOW for leaf in leaves):
        yield window * WINDOW


def _read(device: StateDevice, window: int) -> Found:
    """Read the window that begins there: what is data of it, in stretches of at most ``_WRITE``."""
    size = device.block_size
    first = window // size
    count = -(-min(WINDOW, device.size - window) // (size * tree.FANOUT))
    ids = device.ids(first, first + count * tree.FANOUT)
    found = Found([], [])
    following = -1
    for at, (leaf, run) in enumerate(device.leaf_runs(ids)):
        block = first + at * tree.FANOUT
        if run is None:
            found.others.append((block, leaf))
            continue
        for number, piece in _data(block, leaf, run, size):
            if number == following and number * size % _WRITE:
                found.stretches[-1][1].append(piece)
            else:
                found.stretches.append((number * size, [piece]))
            following = number + len(piece) // size
    return found


def _data(
    block: int, leaf: Leaf, run: Pieces, size: int
) -> Iterator[tuple[int, bytes | memoryview]]:
    """The pieces of a leaf's run that are not zeros, each with the number of its first block."""
    at = 0
    for piece in run:
        if leaf[at] != ZERO_ID:
            yield block + at, piece
        at += len(piece) // size


def _write_within(device: Device, fd: int, at: int, pieces: Pieces) -> int:
    """Write pieces but for what lies behind the device's end; return how many bytes."""
    length = min(sum(map(len, pieces)), device.size - at)
    write_pieces(fd, at, part(pieces, 0, length))
    return length


# -- in the order of the frames ----------------------------------------------------------------


class _PutOff:
    """Blocks of any leaves, until they are written."""

    def __init__(self, device: StateDevice, fd: int, readers: ThreadPoolExecutor) -> None:
        self._device = device
        self._fd = fd
        self._readers = readers
        self._numbers = array("Q")
        self._ids: list[bytes] = []

    @property
    def blocks(self) -> int:
        """How many they are."""
        return len(self._ids)

    def add(self, first: int, leaf: Leaf) -> None:
        """Take the blocks of a leaf that are not zero; ``first`` is the number of the first."""
        held = [(number, oid) for number, oid in enumerate(leaf, first) if oid != ZERO_ID]
        self._numbers.extend([number for number, _ in held])
        self._ids += [oid for _, oid in held]

    def write(self, left: Callable[[int], None]) -> int:
        """Write all of them; return how many bytes.  ``left`` is told how many are left."""
        places = self._device.objects.places(self._ids)
        order = sorted(range(len(places)), key=places.__getitem__)
        count = max(1, _BYTES_AT_ONCE // self._device.block_size)
        parts = [order[start : start + count] for start in range(0, len(order), count)]
        done, rest = 0, len(order)
        for some, placed in in_order(self._readers, partial(self._fetch, places), parts):
            done += self._write(placed)
            rest -= len(some)
            left(rest)
        self._numbers, self._ids = array("Q"), []
        return done

    def _fetch(self, places: Sequence[int], some: Sequence[int]) -> list[tuple[int, bytes]]:
        """The blocks at some positions, each with its number, in the order of these."""
        ids = self._ids
        found = self._device.objects.get_placed([(places[at], ids[at]) for at in some])
        return sorted((self._numbers[at], found[ids[at]]) for at in some)

    def _write(self, placed: Iterable[tuple[int, bytes]]) -> int:
        """Write blocks in the order of their numbers, neighbours together."""
        size, done = self._device.block_size, 0
        runs: list[tuple[int, Pieces]] = []
        following = -1
        for number, block in placed:
            if number == following and len(runs[-1][1]) * size < _WRITE:
                runs[-1][1].append(block)
            else:
                runs.append((number, [block]))
            following = number + 1
        for number, pieces in runs:
            done += _write_within(self._device, self._fd, number * size, pieces)
        return done


# -- bytes ----------------------------------------------------------------------------------------


def write_pieces(fd: int, offset: int, pieces: Pieces) -> None:
    """Write pieces one behind the other; the system takes 1,024 at a time."""
    for first in range(0, len(pieces), _PIECES):
        some = pieces[first : first + _PIECES]
        length = sum(map(len, some))
        count = os.pwritev(fd, some, offset)
        if count < length:
            write_at(fd, offset + count, memoryview(b"".join(some))[count:])
        offset += length


def write_at(fd: int, offset: int, data: bytes | memoryview) -> None:
    """Write all of ``data``, however many calls that takes."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


@contextmanager
def writing(state: str) -> Iterator[None]:
    """What the system refuses becomes this program's error; ``state`` says what is left then."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kind = NoSpace if full else IOFailed
        raise kind(f"writing failed: {error.strerror}; {state}") from None
