"""A range of a volume to a stream, in the disk's own order.

That is a dear order to read in where a guest has written at random (``copying``).  So a span of the
disk at a time is copied into memory, in the order that is cheap, while the one before goes out.
The first span is short, and each is twice as long as the one before: who wants a few bytes of a
disk does not wait for many.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from blockvault.ops import Progress, copying, silent
from blockvault.ops.ahead import in_order

if TYPE_CHECKING:
    from blockvault.ops.reading import StateDevice

_LONGEST = 64 << 20
"""Bytes of a span.  Of a disk that was written at random each span needs nearly every frame, so
half as long ones would decode nearly twice as many."""
_UNDER_WAY = 2
"""Spans in memory: one goes out, one is filled."""
_WRITE = 1 << 20
_ZEROS = bytes(_WRITE)


class _Span(NamedTuple):
    """The bytes ``[start, stop)`` of a device, and the file in memory that they go through."""

    start: int
    stop: int
    fd: int


def stream(
    device: StateDevice, out: BinaryIO, start: int, length: int, progress: Progress = silent
) -> int:
    """Write a range of a device; return how many bytes are not zeros."""
    device.check(start, length)
    data = 0
    with ExitStack() as stack:
        files = [stack.enter_context(_memory()).fileno() for _ in range(_UNDER_WAY)]
        filler = stack.enter_context(ThreadPoolExecutor(1, "fill"))
        spans = _spans(start, start + length, cycle(files))
        for span, filled in in_order(filler, partial(_fill, device), spans, _UNDER_WAY):
            for at in range(span.start, span.stop, _WRITE):
                count = min(_WRITE, span.stop - at)
                found = os.pread(span.fd, count, at) if filled else b""
                # What lies behind the last data is not in the file.
                out.write(found + _ZEROS[: count - len(found)])
                progress(at + count - start, length)
            data += filled
    out.flush()
    return data


def _memory() -> io.FileIO:
    return io.FileIO(os.memfd_create("blockvault-span"), "r+")


def _spans(start: int, stop: int, files: Iterator[int]) -> Iterator[_Span]:
    """A range in spans that begin and end with a window, but for its beginning and its end."""
    last, longest = stop // copying.WINDOW * copying.WINDOW, copying.WINDOW
    while start < stop:
        end = min(start // longest * longest + longest, last) if start < last else stop
        yield _Span(start, end, next(files))
        start, longest = end, min(2 * longest, _LONGEST)


def _fill(device: StateDevice, span: _Span) -> int:
    """Copy a span to its places in its file; return how many bytes are not zeros."""
    start, stop, fd = span
    os.ftruncate(fd, 0)
    if not start % copying.WINDOW and not stop % copying.WINDOW:
        return copying.copy_out(device, fd, silent, start, stop - start)
    return copying.write_ranges(device, fd, _batches(device, start, stop - start))


def _batches(device: StateDevice, start: int, length: int) -> Iterator[tuple[int, int]]:
    """The device's data extents, cut at multiples of ``_WRITE``: most are of whole leaves then."""
    for extent in device.extents(start, length):
        at, end = extent.offset, extent.offset + extent.length
        while at < end and not extent.zero:
            stop = min(end, at // _WRITE * _WRITE + _WRITE)
            yield at, stop - at
            at = stop
