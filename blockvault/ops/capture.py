"""A file that others go on writing, taken as of one instant: the memory of a running machine.

    stream   while it is written   every page into a shadow, the shadow's pages into the vault
    settle   while it is written   pages that differ from the shadow by now: into the shadow
    freeze   nobody writes         the same once more: the shadow is the file of this instant
    finish   while it is written   pages taken since ``stream`` into the vault, and into its tree

What the writers wait for is ``freeze`` alone.  It compares memory with memory, some gigabytes a
second, and copies the pages that changed since ``settle``; nothing is hashed, packed or written
to a disk meanwhile.  Holes of the file, which are memory that no guest has touched, cost nothing.

The shadow takes as much memory as the file has data, for as long as the capture lasts.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from blockvault.errors import BadRequest, IOFailed
from blockvault.ids import ZERO_ID, object_id
from blockvault.libc import libc
from blockvault.model import extents, tree, update
from blockvault.model.extents import Run
from blockvault.model.snapshot import Volume
from blockvault.ops import Progress, silent
from blockvault.ops.images import RawImage
from blockvault.ops.intake import Intake

if TYPE_CHECKING:
    from blockvault.store.frames import Frame
    from blockvault.vault import Vault

PAGE = mmap.PAGESIZE
_STRIDES = (1 << 20, 64 << 10, PAGE)
"""Compared at once; where it differs, its parts are compared in the next smaller one."""
_THREADS = 2

_compare = libc().memcmp
_compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class Capture:
    """Call the four steps in order, then ``close``; or use it in a ``with``."""

    def __init__(self, vault: Vault, fd: int, name: str, before: Volume | None) -> None:
        """``before`` is an earlier state of the same file: what it holds is known to be stored."""
        self.size = os.fstat(fd).st_size
        if not self.size or self.size % PAGE:
            raise BadRequest(f"'{name}' has {self.size} bytes, which is no number of whole pages")
        self._vault = vault
        self._fd = fd
        self._name = name
        self._before = before
        self._root = ZERO_ID
        self._runs: list[Run] = []
        self._late: set[int] = set()
        self._threads = ThreadPoolExecutor(_THREADS, "compare")
        try:
            # Private mappings of both: this process can never write to the file.
            self._live = mmap.mmap(fd, self.size, flags=mmap.MAP_PRIVATE)
            self._shadow = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise IOFailed(f"'{name}' cannot be mapped: {error.strerror}") from None

    # -- the steps -----------------------------------------------------------------------------

    def stream(self, progress: Progress = silent) -> None:
        """Take everything once and store it."""
        runs = self._data()
        source = _Streamed(self, runs)
        intake = Intake(self._vault, progress, self.size)
        self._root = intake.volume(self._name, source, self._before).root
        intake.finish()
        self._runs = runs

    def settle(self) -> int:
        """Take what changed meanwhile; return how many bytes that was."""
        # A hole may have been data before: pages that a guest gave back are compared as well.
        self._runs = list(extents.union(self._runs, self._data()))
        found = list(self._threads.map(self._take_changed, _shares(self._runs)))
        self._late.update(*found)
        return sum(map(len, found)) * PAGE

    freeze = settle

    def _take_changed(self, runs: Sequence[Run]) -> list[int]:
        """Copy the pages of these runs that changed into the shadow; return their offsets."""
        before, after = _address(self._shadow), _address(self._live)
        taken = []
        for run in runs:
            for offset in _differing(before, after, run.start, run.stop, _STRIDES):
                ctypes.memmove(before + offset, after + offset, PAGE)
                taken.append(offset)
        return taken

    def finish(self) -> tuple[Volume, list[Frame]]:
        """The file as it was at ``freeze``, and the frames that the caller must store with it."""
        objects = self._vault.new_objects()
        size = self._vault.options.block_size
        zero = bytes(size)
        changes: dict[int, bytes] = {}
        shadow = memoryview(self._shadow)
        numbers = sorted({offset // size for offset in self._late})
        for some in _batches(numbers):
            blocks = [bytes(shadow[n * size : (n + 1) * size]).ljust(size, b"\0") for n in some]
            ids = [ZERO_ID if block == zero else object_id(block) for block in blocks]
            objects.add_blocks(ids, blocks)
            changes.update(zip(some, ids, strict=True))
        shadow.release()
        height = tree.depth(tree.blocks_in(self.size, size))
        root = update.update(self._vault.objects, objects, self._root, height, changes)
        return Volume(self._name, self.size, root), objects.finish()

    def close(self) -> None:
        """Give the shadow's memory back."""
        self._threads.shutdown()
        self._live.close()
        self._shadow.close()

    def __enter__(self) -> Self:
        # What is stored here is named by an event only when the caller records its snapshot.
        self._guard = self._vault.guard()
        self._guard.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._guard.__exit__(kind, error, trace)
        self.close()

    # -- what there is -------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes of the file that hold data."""
        return sum(run.stop - run.start for run in self._runs)

    def _data(self) -> list[Run]:
        """The file's data runs, in bytes.  Holes must not be touched: reading one through the
        mapping would make it data."""
        runs, at = [], 0
        while at < self.size:
            try:
                start = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise IOFailed(f"'{self._name}' cannot be read: {error.strerror}") from None
            at = min(os.lseek(self._fd, start, os.SEEK_HOLE), self.size)
            runs.append(Run(start, at))
        return runs

    def take(self, offset: int, into: memoryview) -> None:
        """Copy a range into the shadow, and what the shadow now holds there into the buffer."""
        stop = min(offset + len(into), self.size)
        with memoryview(self._shadow)[offset:stop] as view:
            if os.preadv(self._fd, [view], offset) != len(view):
                raise IOFailed(f"'{self._name}' ended while it was read")
            into[: len(view)] = view
        into[stop - offset :] = bytes(len(into) - (stop - offset))


class _Streamed(RawImage):
    """The captured file as an image; what is read of it goes through the shadow."""

    def __init__(self, capture: Capture, runs: list[Run]) -> None:
        self.path = Path(capture._name)
        self.size = capture.size
        self._capture = capture
        self._data = runs

    def data_runs(self) -> Iterator[tuple[int, int]]:
        return ((run.start, run.stop) for run in self._data)

    def read_into(self, offset: int, into: memoryview) -> None:
        self._capture.take(offset, into)


def _address(buffer: mmap.mmap) -> int:
    """Where a mapping begins; valid until it is closed."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _differing(a: int, b: int, start: int, stop: int, strides: Sequence[int]) -> Iterator[int]:
    """Offsets of the pages in ``[start, stop)`` that differ between two mappings."""
    stride, smaller = strides[0], strides[1:]
    for at in range(start, stop, stride):
        end = min(at + stride, stop)
        if _compare(a + at, b + at, end - at):
            if smaller:
                yield from _differing(a, b, at, end, smaller)
            else:
                yield at


def _shares(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs cut into parts of about the same size, one for each thread."""
    share = -(-sum(run.stop - run.start for run in runs) // _THREADS)
    shares: list[list[Run]] = [[]]
    room = share
    for start, stop, _ in runs:
        while stop - start > room:
            cut = start + room // PAGE * PAGE
            shares[-1].append(Run(start, cut))
            shares.append([])
            start, room = cut, share + PAGE
        shares[-1].append(Run(start, stop))
        room -= stop - start
    return shares


def _batches(items: list[int], size: int = 256) -> Iterable[list[int]]:
    return (items[at : at + size] for at in range(0, len(items), size))
