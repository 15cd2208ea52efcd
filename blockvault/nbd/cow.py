"""A throw-away writable layer over a read-only device: ``serve --copy-on-write``.

Blocks that were written lie in a sparse file that has no name, at the offsets they have on the
device, so it takes the room of what was written and the system takes it back however the server
ends.  For each block one byte says where it is: below, in the file, or nowhere (zeros).  A block
that is written in part is first copied up.  Nothing here is ever durable, so a flush is empty.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path

from blockvault.device import Device, Extent
from blockvault.errors import BadRequest, IOFailed, NoSpace
from blockvault.nbd.exports import read_many_of
from blockvault.nbd.replies import Content

BELOW, WRITTEN, ZERO = 0, 1, 2
CHUNK = 32768  # blocks whose states are kept together; untouched chunks take no memory
UNTOUCHED = bytes(CHUNK)


class CopyOnWrite:
    """A device that reads through to ``base`` and keeps every change to itself."""

    read_only = False

    def __init__(self, base: Device, directory: Path | None = None) -> None:
        self.size = base.size
        self.block_size = base.block_size
        self._base = base
        self._read_base = read_many_of(base)
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - see close
        self._states: dict[int, bytearray] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Forget all that was written."""
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
        size, end = self.block_size, offset + length
        first, last = -(-offset // size) * size, end // size * size
        if end == self.size:
            last = -(-end // size) * size
        if first >= last:
            self.write(offset, bytes(length))
            return
        if offset < first:
            self.write(offset, bytes(first - offset))
        if last < end:
            self.write(last, bytes(end - last))
        with self._lock:
            self._mark(first, last - first, ZERO)

    def trim(self, offset: int, length: int) -> None:
        self.zero(offset, length)

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
        """(offset, length, state) of the parts of a range, one after the other."""
        size, position, stop = self.block_size, offset, offset + length
        while position < stop:
            number, place = divmod(position // size, CHUNK)
            states = self._states.get(number, UNTOUCHED)
            state = states[place]
            following = place + 1
            while following < CHUNK and states[following] == state:
                following += 1
                if (number * CHUNK + following) * size >= stop:
                    break
            end = min((number * CHUNK + following) * size, stop)
            yield position, end - position, state
            position = end

    def _is_untouched(self, offset: int, length: int) -> bool:
        """Whether all of a range is below, and its states are kept together."""
        _, size, state = next(self._runs(offset, length))
        return state == BELOW and size == length

    def _mark(self, offset: int, length: int, state: int) -> None:
        block, stop = offset // self.block_size, -(-(offset + length) // self.block_size)
        while block < stop:
            number, place = divmod(block, CHUNK)
            count = min(CHUNK - place, stop - block)
            states = self._states.setdefault(number, bytearray(CHUNK))
            states[place : place + count] = bytes([state]) * count
            block += count

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
        data = os.pread(self._file.fileno(), length, offset)
        if len(data) != length:
            raise IOFailed(f"the copy-on-write file ends before {offset + length}")
        return data

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(self._file.fileno(), view, offset)
            except OSError as error:
                kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else IOFailed
                raise kind(f"cannot write the copy-on-write file: {error.strerror}") from None
            view, offset = view[written:], offset + written

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise BadRequest(f"{length} bytes at {offset} reach beyond {self.size}")
