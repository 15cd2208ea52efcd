"""A throw-away writable layer over a read-only device: ``serve --copy-on-write``.

Blocks that were written lie in a sparse file that has no name, at the offsets they have on the
device, so it takes the room of what was written and not trimmed since, and the system takes it back
however the server ends; until something is written there is none.  For each block one byte says
where it is: below, in the file, or nowhere (zeros).  A block that is written in part is first
copied up.  Nothing here is ever durable, so a flush is empty.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import IO

from blockvault.device import Device, Extent
from blockvault.errors import BadRequest, IOFailed, NoSpace
from blockvault.libc import punch_hole
from blockvault.nbd.exports import read_many_of
from blockvault.nbd.replies import Content

BELOW, WRITTEN, ZERO = 0, 1, 2
CHUNK = 32768
"""Blocks whose states are kept together.  Chunks of one state share their bytes: a disk of many
terabytes that was trimmed takes no memory."""
WHOLE = {state: bytes([state]) * CHUNK for state in (BELOW, ZERO)}


class CopyOnWrite:
    """A device that reads through to ``base`` and keeps every change to itself."""

    read_only = False

    def __init__(self, base: Device, directory: Path | None = None) -> None:
        self.size = base.size
        self.block_size = base.block_size
        self._base = base
        self._read_base = read_many_of(base)
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._states: dict[int, bytes | bytearray] = {}
        self._lock = threading.Lock()

    @property
    def written(self) -> bool:
        """Whether anything was changed."""
        return bool(self._states)

    def close(self) -> None:
        """Forget all that was written."""
        if self._file is not None:
            self._file.close()

    # -- the device --------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return b"".join(
            self._part(state, start, size) for start, size, state in self._runs(offset, length)
        )

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[Content]:
        """``read`` for several ranges; those that nobody wrote to are read together."""
        for offset, length in ranges:
            self._check(offset, length)
        untouched = [self._is_untouched(offset, length) for offset, length in ranges]
        below = iter(self._read_base([*compress(ranges, untouched)]))
        return [
            next(below) if base else self.read(offset, length)
            for base, (offset, length) in zip(untouched, ranges, strict=True)
        ]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._check(offset, len(data))
        if not data:
            return
        with self._lock:
            self._copy_up(offset, len(data))
            self._put(offset, data)
            self._mark(offset, len(data), WRITTEN)

    def zero(self, offset: int, length: int) -> None:
        self._check(offset, length)
        end = offset + length
        first, last = self._whole_blocks(offset, end)
        if first >= last:
            self.write(offset, bytes(length))
            return
        if offset < first:
            self.write(offset, bytes(first - offset))
        if last < end:
            self.write(last, bytes(end - last))
        self._clear(first, last - first)

    def trim(self, offset: int, length: int) -> None:
        """Whole blocks only: what a trim says of the edges is that they need not be kept."""
        self._check(offset, length)
        first, last = self._whole_blocks(offset, offset + length)
        if first < last:
            self._clear(first, last - first)

    def flush(self) -> None:
        """Nothing here outlives the server."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._check(offset, length)
        for start, size, state in self._runs(offset, length):
            if state == BELOW:
                yield from self._base.extents(start, size)
            else:
                yield Extent(start, size, state == ZERO)

    # -- where blocks are --------------------------------------------------------------------------

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(offset, length, state) of the parts of a range, each as long as it can be."""
        size, start, stop = self.block_size, offset, offset + length
        last = -(-stop // size)
        while start < stop:
            block = start // size
            state, count = self._run(block, last)
            while count and (block := block + count) < last and not block % CHUNK:
                following, count = self._run(block, last)
                count = count if following == state else 0
            end = min(block * size, stop)
            yield start, end - start, state
            start = end

    def _run(self, block: int, stop: int) -> tuple[int, int]:
        """The state of a block, and how many from it on have that, up to the end of its chunk."""
        number, place = divmod(block, CHUNK)
        stop = min(CHUNK, place + stop - block)
        states = self._states.get(number, WHOLE[BELOW])
        if states is WHOLE.get(states[place]):
            return states[place], stop - place
        some = states[place:stop]  # a copy: others write meanwhile
        return some[0], len(some) - len(some.lstrip(some[:1]))

    def _whole_blocks(self, start: int, stop: int) -> tuple[int, int]:
        """The blocks of a range that it covers, as offsets; the device's last one may be short."""
        size = self.block_size
        last = -(-stop // size) * size if stop == self.size else stop // size * size
        return -(-start // size) * size, last

    def _is_untouched(self, offset: int, length: int) -> bool:
        """Whether all of a range is below."""
        _, size, state = next(self._runs(offset, length))
        return state == BELOW and size == length

    def _mark(self, offset: int, length: int, state: int) -> None:
        block, stop = offset // self.block_size, -(-(offset + length) // self.block_size)
        while block < stop:
            number, place = divmod(block, CHUNK)
            count = min(CHUNK - place, stop - block)
            if count == CHUNK and state in WHOLE:
                self._states[number] = WHOLE[state]
            else:
                self._own(number)[place : place + count] = bytes([state]) * count
            block += count

    def _clear(self, offset: int, length: int) -> None:
        """Make whole blocks zeros; the room that they took in the file goes back to the disk."""
        with self._lock:
            self._mark(offset, length, ZERO)
            if self._file is not None:
                with contextlib.suppress(OSError):  # they are zeros already, whatever it holds
                    punch_hole(self._file.fileno(), offset, length)

    def _own(self, number: int) -> bytearray:
        """The states of a chunk, which are not shared with others from now on."""
        states = self._states.get(number, WHOLE[BELOW])
        if not isinstance(states, bytearray):
            states = self._states[number] = bytearray(states)
        return states

    def _copy_up(self, offset: int, length: int) -> None:
        """Put into the file what the first and last block hold beside the range."""
        size, end = self.block_size, offset + length
        for block in {offset // size, (end - 1) // size}:
            start = block * size
            whole = min(size, self.size - start)
            if offset <= start and start + whole <= end:
                continue
            ((_, _, state),) = self._runs(start, whole)
            if state != WRITTEN:
                self._put(start, self._part(state, start, whole))
                self._mark(start, whole, WRITTEN)

    # -- bytes -------------------------------------------------------------------------------------

    def _part(self, state: int, offset: int, length: int) -> bytes:
        if state == BELOW:
            return self._base.read(offset, length)
        if state == ZERO:
            return bytes(length)
        data = b"" if self._file is None else os.pread(self._file.fileno(), length, offset)
        if len(data) != length:
            raise IOFailed(f"the copy-on-write file ends before {offset + length}")
        return data

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
                written = os.pwrite(self._file.fileno(), view, offset)
            except OSError as error:
                kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else IOFailed
                raise kind(f"cannot write the copy-on-write file: {error.strerror}") from None
            view, offset = view[written:], offset + written

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise BadRequest(f"{length} bytes at {offset} reach beyond {self.size}")
