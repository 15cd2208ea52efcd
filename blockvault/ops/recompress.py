"""Cold frames packed larger and harder: ``gc --recompress``.

Neighbouring frames of blocks are decoded and packed together in the order in which they were
stored.  What that costs is only time: reading a packed frame is as fast, a byte, as reading any.
Frames are taken oldest first; a row in ``meta`` says how far that came at which level, so that an
interrupted run goes on and a later one begins with what is new.  Ages are those of the frames as
collections noted them, so the first run after a while knows what is cold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from blockvault import pins
from blockvault.encoding import pack, unpack
from blockvault.errors import BadRequest, Busy, Damaged
from blockvault.ids import object_id
from blockvault.ops import Progress, silent
from blockvault.store import frames, tables
from blockvault.store.codec import Codec
from blockvault.store.frames import Frame

if TYPE_CHECKING:
    from blockvault.store.types import Reader
    from blockvault.vault import Vault

PACKED_BYTES = 4 << 20
"""Raw bytes of a packed frame: what a read of one cold block decodes at most."""

_LARGER_THAN_WRITTEN = 512 << 10
_PACKED = b"packed"
_AGES = b"ages"
_AGES_KEPT = 1000
_HEADS_A_READ = 1024


class Packed(NamedTuple):
    """What a run did: frames before and after, and their bytes."""

    frames: int
    became: int
    bytes_before: int
    bytes_after: int
    skipped: tuple[int, ...]


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
    """One run, group of frames by group of frames."""

    def __init__(self, vault: Vault, level: int, frame_bytes: int) -> None:
        self.vault = vault
        self.codec = Codec(f"zstd:{level}")
        self.level = level
        self.frame_bytes = min(frame_bytes, frames.MAX_RAW)
        self.skipped: list[int] = []

    def run(self, upto: int, progress: Progress) -> Packed:
        with self.vault.read() as reader:
            if reader.condemning:
                raise Busy("a collection was interrupted: run gc first; nothing was packed")
            start = _done(reader, self.level) + 1
            self.skip_large = start > 1
        count = became = before = after = 0
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(workers, "pack") as pool:
            groups = self._groups(start, upto)
            while some := list(islice(groups, workers)):
                packed = list(pool.map(self._pack, some))
                for group, frame in zip(some, packed, strict=True):
                    length = sum(old.length for old in group)
                    count, before = count + len(group), before + length
                    if len(frame.data) < length:
                        self._swap(group, frame)
                        became, after = became + 1, after + len(frame.data)
                    else:
                        became, after = became + len(group), after + length
                    progress(group[-1].number, upto)
                self._note(some[-1][-1].number)
        self._note(max(upto, start - 1))
        return Packed(count, became, before, after, tuple(self.skipped))

    def _groups(self, start: int, upto: int) -> Iterator[list[Old]]:
        """Neighbouring frames of blocks that fill one packed frame."""
        group: list[Old] = []
        size = 0
        for number, length in self._frames(start, upto):
            old = self._open(number, length)
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

    def _frames(self, start: int, upto: int) -> Iterator[tuple[int, int]]:
        while True:
            with self.vault.read() as reader:
                heads = reader.frame_heads(start, _HEADS_A_READ)
            for number, head, length in heads:
                if number > upto:
                    return
                # Frames that an earlier run packed have numbers of their own, above what was cold.
                size = frames.object_count(head) * self.vault.options.block_size
                if not (self.skip_large and size > _LARGER_THAN_WRITTEN):
                    yield number, length
            if not heads:
                return
            start = heads[-1][0] + 1

    def _open(self, number: int, length: int) -> Old | None:
        """The frame's living blocks; None if it holds nodes, or bytes that are not as stored."""
        with self.vault.read() as reader:
            data = reader.frame(number)
            dead = reader.dead_slots(number)
        try:
            objects = frames.decode(data or b"")
        except Damaged:
            self.skipped.append(number)
            return None
        if objects.uniform != self.vault.options.block_size:
            return None
        pairs = [(object_id(each), each) for s, each in enumerate(objects) if not dead >> s & 1]
        with self.vault.read() as reader:
            places = reader.locate([oid for oid, _ in pairs])
        if None in places:
            self.skipped.append(number)
            return None
        there = [(at or 0) >> tables.SLOT_BITS for at in places]
        here = [pair for pair, at in zip(pairs, there, strict=True) if at == number]
        return Old(number, length, here)

    def _pack(self, group: Sequence[Old]) -> Frame:
        pairs = [pair for old in group for pair in old.pairs]
        data = frames.encode([data for _, data in pairs], self.codec) if pairs else b""
        return Frame(data, tuple(oid for oid, _ in pairs))

    def _swap(self, group: Sequence[Old], frame: Frame) -> None:
        with self.vault.store.write() as writer:
            if frame.ids:
                writer.move_frames([frame])
            for old in group:
                writer.set_dead(old.number, 0)
            writer.drop_frames([old.number for old in group])

    def _note(self, number: int) -> None:
        with self.vault.store.write() as writer:
            writer.put(tables.META, _PACKED, pack([self.level, number]))


def _done(reader: Reader, level: int) -> int:
    """How far frames were packed at this level or a higher one."""
    data = reader.get(tables.META, _PACKED)
    if data is None:
        return 0
    at, number = unpack(data, "packed")
    return int(number) if at >= level else 0


def _ages(reader: Reader) -> list[tuple[int, int]]:
    data = reader.get(tables.META, _AGES)
    return [] if data is None else [(at, number) for at, number in unpack(data, "ages")]
