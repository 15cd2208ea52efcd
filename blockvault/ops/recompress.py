"""Cold frames packed larger and harder: ``gc --recompress``.

Frames of blocks are decoded and packed together: neighbours with neighbours, in the order in which
they were stored, and those that are much like an earlier one behind that (``likeness``).  A byte of
a packed frame is read as fast as any, but more bytes are decoded for it; so a packed frame is
larger, not large.

Frames are taken in stretches, oldest first; a row in ``meta`` says how far that came at which
level, so that a later run begins with what is new.  A run that was interrupted goes on with those
frames of its stretch that are still there.  Ages are those of the frames as collections noted them,
so the first run after a while knows what is cold.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from blockvault import pins
from blockvault.encoding import pack, unpack
from blockvault.errors import BadRequest, Busy, Damaged, IOFailed
from blockvault.ids import object_id
from blockvault.ops import Progress, entries, likeness, silent
from blockvault.ops.likeness import Piece
from blockvault.store import frames, tables
from blockvault.store.codec import Codec
from blockvault.store.frames import Frame

if TYPE_CHECKING:
    from blockvault.store.types import Reader
    from blockvault.vault import Vault

PACKED_BYTES = 2 << 20
"""Raw bytes of a packed frame: what a read of one cold block decodes at most."""

STRETCH = 2 << 30
"""Raw bytes of the frames that are compared with one another."""

_LARGER_THAN_WRITTEN = 512 << 10
_PACKED = b"packed"
_AGES = b"ages"
_AGES_KEPT = 1000
_ROWS_A_COMMIT = 4096
_REST = 0.005
_WORKERS = os.cpu_count() or 1


class Packed(NamedTuple):
    """What a run did: frames before and after, and their bytes."""

    frames: int
    became: int
    bytes_before: int
    bytes_after: int
    skipped: tuple[int, ...]


class _Progress(NamedTuple):
    """What is packed at a level: frames up to ``number``, and after ``newest`` the large ones."""

    level: int
    number: int
    newest: int


class Old(NamedTuple):
    """A frame that is to be packed with others: its number, its bytes, its living objects."""

    number: int
    length: int
    pairs: list[tuple[bytes, bytes]]


def note_age(vault: Vault, now_us: int) -> None:
    """Remember that all frames there are now are at least as old as this moment."""
    with vault.store.write() as writer:
        ages = _ages(writer)
        newest = writer.newest_frame()
        if not ages or ages[-1][1] != newest:
            ages.append((now_us, newest))
            writer.put(tables.META, _AGES, pack(ages[-_AGES_KEPT:]))


def cold_frames(vault: Vault, before_us: int | None) -> int:
    """The last frame that is known to be older than a moment; None: the last of all."""
    with vault.read() as reader:
        if before_us is None:
            return reader.newest_frame()
        return max((number for at, number in _ages(reader) if at <= before_us), default=0)


def recompress(
    vault: Vault,
    level: int,
    *,
    upto: int,
    frame_bytes: int = PACKED_BYTES,
    progress: Progress = silent,
) -> Packed:
    """Pack all frames of blocks up to number ``upto``; ``Busy`` beside another collection."""
    if not vault.options.compression.startswith("zstd:"):
        raise BadRequest("the vault was made without compression: there is nothing to pack harder")
    with pins.sole(vault.path, "gc"):
        return _Packing(vault, level, frame_bytes).run(upto, progress)


class _Packing:
    """One run, stretch by stretch, and in it group of frames by group of frames."""

    def __init__(self, vault: Vault, level: int, frame_bytes: int) -> None:
        self.vault = vault
        self.codec = Codec(f"zstd:{level}")
        self.level = level
        self.frame_bytes = min(frame_bytes, frames.MAX_RAW)
        self.skipped: list[int] = []
        self.count = self.became = self.before = self.after = 0

    def run(self, upto: int, progress: Progress) -> Packed:
        with self.vault.read() as reader:
            if reader.condemning:
                raise Busy("a collection was interrupted: run gc first; nothing was packed")
            at = _done(reader, self.level) or _Progress(self.level, 0, reader.newest_frame())
        self._note(at)
        total = sum(length for _, length in self._frames(at, upto))
        with ThreadPoolExecutor(_WORKERS, "pack") as pool:
            while stretch := list(self._stretch(at, upto)):
                groups = self._groups(likeness.ordered(stretch))
                for group, frame in _ahead(pool, self._pack, groups):
                    self._replace(group, frame)
                    progress(self.before, total)
                    time.sleep(_REST)
                at = at._replace(number=max(piece.number for piece in stretch))
                self._note(at)
        self._note(at._replace(number=max(upto, at.number)))
        if self.count:
            self._tighten()
        return Packed(self.count, self.became, self.before, self.after, tuple(self.skipped))

    def _stretch(self, at: _Progress, upto: int) -> Iterator[Piece]:
        """The next frames of blocks, with what is compared of each."""
        size = 0
        for number, length in self._frames(at, upto):
            with self.vault.read() as reader:
                data = reader.frame(number)
            try:
                objects = frames.decode(data or b"")
            except Damaged:
                self.skipped.append(number)
                continue
            if objects.uniform == self.vault.options.block_size:
                yield Piece(number, length, likeness.pieces(objects.payload))
                size += len(objects.payload)
                if size >= STRETCH:
                    return

    def _groups(self, numbers: Iterable[int]) -> Iterator[list[Old]]:
        """The frames of those numbers, as many together as fill one packed frame."""
        group: list[Old] = []
        size = 0
        for number in numbers:
            old = self._open(number)
            if old is None:
                continue
            content = sum(len(data) for _, data in old.pairs)
            if group and size + content > self.frame_bytes:
                yield group
                group, size = [], 0
            group.append(old)
            size += content
        if group:
            yield group

    def _frames(self, at: _Progress, upto: int) -> Iterator[tuple[int, int]]:
        """(number, length) of what is to be packed."""
        start = at.number + 1
        while True:
            with self.vault.read() as reader:
                heads = reader.frame_heads(start)
            for number, head, length in heads:
                if number > upto:
                    return
                size = frames.object_count(head) * self.vault.options.block_size
                if number <= at.newest or size <= _LARGER_THAN_WRITTEN:
                    yield number, length
            if not heads:
                return
            start = heads[-1][0] + 1

    def _open(self, number: int) -> Old | None:
        """The frame's living blocks; None if they are not as they were stored."""
        with self.vault.read() as reader:
            data = reader.frame(number)
            dead = reader.dead_slots(number)
        if data is None:
            return None
        objects = frames.decode(data)
        pairs = [(object_id(each), each) for s, each in enumerate(objects) if not dead >> s & 1]
        with self.vault.read() as reader:
            places = reader.locate([oid for oid, _ in pairs])
        if None in places:
            self.skipped.append(number)
            return None
        elsewhere = [
            (at, oid)
            for (oid, _), at in zip(pairs, places, strict=True)
            if at is not None and at >> tables.SLOT_BITS != number
        ]
        # A row may be damaged: what is not where it says must not go with this frame.
        there = entries.held(self.vault, elsewhere)
        return Old(number, len(data), [pair for pair in pairs if pair[0] not in there])

    def _pack(self, group: Sequence[Old]) -> Frame:
        pairs = [pair for old in group for pair in old.pairs]
        data = frames.encode([data for _, data in pairs], self.codec) if pairs else b""
        return Frame(data, tuple(oid for oid, _ in pairs))

    def _replace(self, group: Sequence[Old], frame: Frame) -> None:
        """Put the packed frame in the place of the others, if it is smaller."""
        length = sum(old.length for old in group)
        smaller = len(frame.data) < length
        self.count, self.before = self.count + len(group), self.before + length
        self.became += 1 if smaller else len(group)
        self.after += len(frame.data) if smaller else length
        if not smaller:
            return
        with self.vault.store.write() as writer:
            if frame.ids:
                writer.move_frames([frame])
            for old in group:
                writer.set_dead(old.number, 0)
            writer.drop_frames([old.number for old in group])

    def _tighten(self) -> None:
        """What was moved has left gaps in the index, and free pages in the file."""
        parts = iter(range(tables.INDEX_PARTS))
        rows = _ROWS_A_COMMIT
        while rows >= _ROWS_A_COMMIT:
            rows = 0
            with self.vault.store.write() as writer:
                for part in parts:
                    rows += writer.tighten_index(part)
                    if rows >= _ROWS_A_COMMIT:
                        break
            time.sleep(_REST)
        with suppress(IOFailed, Busy):
            self.vault.give_back()

    def _note(self, at: _Progress) -> None:
        with self.vault.store.write() as writer:
            writer.put(tables.META, _PACKED, pack(at))


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[list[Old]], Frame],
    groups: Iterable[list[Old]],
) -> Iterator[tuple[list[Old], Frame]]:
    """Each group with what became of it, in order; no more than the pool has to do is begun."""
    waiting: deque[tuple[list[Old], Future[Frame]]] = deque()
    for group in groups:
        waiting.append((group, pool.submit(work, group)))
        if len(waiting) > _WORKERS:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _done(reader: Reader, level: int) -> _Progress | None:
    """How far frames were packed at this level or a higher one."""
    data = reader.get(tables.META, _PACKED)
    if data is None:
        return None
    found = _Progress(*unpack(data, "packed"))
    return found if found.level >= level else None


def _ages(reader: Reader) -> list[tuple[int, int]]:
    data = reader.get(tables.META, _AGES)
    return [] if data is None else [(at, number) for at, number in unpack(data, "ages")]
