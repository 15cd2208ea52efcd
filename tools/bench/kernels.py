"""The physical limits: the bare operations that no store can avoid, on the same bytes.

``python -m tools.bench.kernels series --scratch DIR IMAGE...`` prints, for each image of a series,
the seconds that one core needs to read its data blocks (from the page cache), to hash each of
them with BLAKE3 (``hash_runs``: all together), to compress those that no earlier image had (zstd
level 3, 256 KiB at a time), to write and fsync the compressed bytes, to decompress them, and to
write the image back.  ``fsync`` prints the latency of a 4 KiB overwrite made durable, ``copy`` the
seconds of writing the data of one image to a file, ``shrink`` those until the file system durably
has ``--size`` bytes of a file back.  ``survey`` only counts.

Nothing is indexed, no metadata is written, nothing is checked: a store that came to these figures
would be doing no work of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard
from blake3 import blake3

BLOCK = 4096
FRAME = 256 * 1024
PIECE = 1 << 20
ZERO = bytes(BLOCK)


class Timer:
    """Adds up the seconds of named operations."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what the file system holds as data, in pieces of at most 1 MiB."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        for piece in range(start, end, PIECE):
            yield piece, min(piece + PIECE, end)
        position = end


def data_blocks(data: bytes) -> list[bytes]:
    """The non-zero blocks of a piece; the last one may be short."""
    blocks = (data[start : start + BLOCK] for start in range(0, len(data), BLOCK))
    return [each for each in blocks if each != ZERO[: len(each)]]


class Limits:
    """Measures image after image, and remembers which blocks earlier ones had."""

    def __init__(self, scratch: Path | None) -> None:
        self.scratch = scratch
        self.seen: set[bytes] = set()

    def measure(self, path: Path) -> dict[str, float]:
        """Counts in bytes (``size``, ``data``, ``new``, ``stored``) and seconds of one core."""
        timer = Timer()
        fd = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            counts, fresh = self._read_and_hash(fd, size, timer)
            if self.scratch is not None:
                counts["stored"] = self._compress(fresh, timer)
                copy(fd, self.scratch, timer)
        finally:
            os.close(fd)
        return {"size": size, **counts, **timer.seconds}

    def _read_and_hash(
        self, fd: int, size: int, timer: Timer
    ) -> tuple[dict[str, float], list[bytes]]:
        data = new = 0
        fresh: list[bytes] = []
        for start, end in data_ranges(fd, size):
            with timer("read"):
                piece = os.pread(fd, end - start, start)
            with timer("hash_runs"):
                blake3(piece).digest()
            blocks = data_blocks(piece)
            with timer("hash"):
                ids = [blake3(each).digest() for each in blocks]
            for oid, each in zip(ids, blocks, strict=True):
                data += len(each)
                if oid not in self.seen:
                    self.seen.add(oid)
                    new += len(each)
                    if self.scratch is not None:
                        fresh.append(each)
        return {"data": data, "new": new}, fresh

    def _compress(self, fresh: list[bytes], timer: Timer) -> int:
        """Compress, write durably and decompress the new blocks; returns the compressed bytes."""
        assert self.scratch is not None
        encoder, decoder = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
        per_frame = FRAME // BLOCK
        target = self.scratch / "limit-frames"
        stored = 0
        with target.open("wb", buffering=0) as file:
            for first in range(0, len(fresh), per_frame):
                raw = b"".join(fresh[first : first + per_frame])
                with timer("zstd"):
                    frame = encoder.compress(raw)
                with timer("write"):
                    file.write(frame)
                with timer("unzstd"):
                    decoder.decompress(frame)
                stored += len(frame)
            with timer("write"):
                os.fsync(file.fileno())
        target.unlink()
        return stored


def copy(fd: int, scratch: Path, timer: Timer) -> None:
    """Write the image's data where it was, holes kept, as an export must."""
    size, target = os.fstat(fd).st_size, scratch / "limit-copy"
    with target.open("wb", buffering=0) as file:
        file.truncate(size)
        for start, end in data_ranges(fd, size):
            piece = os.pread(fd, end - start, start)
            with timer("copy"):
                os.pwrite(file.fileno(), piece, start)
    target.unlink()


def image_copy(path: Path, scratch: Path) -> dict[str, float]:
    """Seconds of writing an image's data, which are in the page cache, to a file."""
    timer = Timer()
    with path.open("rb") as file:
        copy(file.fileno(), scratch, timer)
    return {"seconds": timer.seconds["copy"]}


def fsync_latency(scratch: Path, count: int = 60) -> dict[str, float]:
    """Seconds of one 4 KiB overwrite made durable: median and 95th percentile.

    Where a file does not get longer there is nothing to make durable but the block.
    """
    target = scratch / "limit-fsync"
    seconds = []
    with target.open("wb", buffering=0) as file:
        file.write(bytes(count * BLOCK))
        os.fsync(file.fileno())
        for number in range(count):
            data = os.urandom(BLOCK)
            start = time.perf_counter()
            os.pwrite(file.fileno(), data, number * BLOCK)
            os.fdatasync(file.fileno())
            seconds.append(time.perf_counter() - start)
    target.unlink()
    return {"median": statistics.median(seconds), "p95": sorted(seconds)[int(count * 0.95)]}


def shrink(size: int, scratch: Path) -> dict[str, float]:
    """Seconds of giving back what a file holds; it was written and made durable before."""
    target = scratch / "limit-shrink"
    with target.open("wb", buffering=0) as file:
        for start in range(0, size, PIECE):
            file.write(os.urandom(min(PIECE, size - start)))
        os.fsync(file.fileno())
        began = time.perf_counter()
        os.ftruncate(file.fileno(), 0)
        os.fsync(file.fileno())
        seconds = time.perf_counter() - began
    target.unlink()
    return {"seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(prog="kernels", description="Physical limits of a machine.")
    parser.add_argument("what", choices=("series", "survey", "fsync", "copy", "shrink"))
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path())
    parser.add_argument("--size", type=int, default=0)
    options = parser.parse_intermixed_args()
    if options.what == "fsync":
        print(json.dumps(fsync_latency(options.scratch)))
        return
    if options.what == "copy":
        print(json.dumps(image_copy(options.images[0], options.scratch)))
        return
    if options.what == "shrink":
        print(json.dumps(shrink(options.size, options.scratch)))
        return
    limits = Limits(options.scratch if options.what == "series" else None)
    print(json.dumps([limits.measure(path) for path in options.images]))


if __name__ == "__main__":
    main()
