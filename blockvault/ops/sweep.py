"""The last phase of a collection: dead objects leave the index, then the frames.

Frames are immutable, so they are read, decoded and packed anew outside of any transaction, by
threads and ahead; a transaction only moves and deletes.  An object leaves the index only if the
index has it in the very place that is dead, for it may have been stored anew.  A frame that cannot
be decoded does not tell which objects it held: it stays as it is.

What is dead only because its row in the index is damaged is *astray*: needed and not found by the
index, or found where it is not.  Its frame stays for this time, and the index gets it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Protocol

from blockvault.errors import Damaged
from blockvault.ids import object_id
from blockvault.ops import entries
from blockvault.ops.ahead import in_order
from blockvault.ops.marks import Counted, Marks
from blockvault.store import frames, tables
from blockvault.store.codec import Codec
from blockvault.store.frames import Frame
from blockvault.store.gathering import FRAME_BYTES

if TYPE_CHECKING:
    from blockvault.ops.turns import Turns
    from blockvault.store.types import Writer
    from blockvault.vault import Vault

_THREADS = 2
_DROPS_A_STEP = 6
_MOVES_A_STEP = 512 << 10
_LOOKS_A_STEP = 16
_ALONE = 4
"""So many times as much a step where nobody waits: most of a small commit is waiting for the disk.
Whoever comes then waits some 30 ms, once."""


class Tally(Protocol):
    """Where a sweep counts what it did."""

    objects: int
    frames_dropped: int
    frames_rewritten: int
    bytes_freed: int
    unreadable: list[int]


@dataclass(slots=True)
class _Opened:
    """A decoded frame: its dead objects by id and place, its living ones by id and bytes.

    ``slots`` are the dead places, as bits; ``astray`` are those that are none.
    """

    number: int
    length: int
    dead: list[tuple[bytes, int]] = field(default_factory=list)
    alive: list[tuple[bytes, bytes]] = field(default_factory=list)
    astray: list[tuple[bytes, int]] = field(default_factory=list)
    slots: int = 0

    @property
    def size(self) -> int:
        return sum(len(data) for _, data in self.alive)


class Sweeper:
    """Removes what the marks leave out, step by step; each step is one transaction."""

    def __init__(self, vault: Vault, turns: Turns, marks: Marks, tally: Tally) -> None:
        self.vault = vault
        self.turns = turns
        self.marks = marks
        self.tally = tally
        self.codec = Codec(vault.options.compression)

    def steps(
        self,
        drop: Sequence[Counted],
        rewrite: Sequence[Counted],
        leave: Sequence[Counted],
        look: Sequence[Counted],
    ) -> Iterator[int]:
        """Do one step after the other; each yields the bytes of the frames it looked at.  Those to
        ``look`` at were swept before: only what is astray in them is something new.
        """
        with ThreadPoolExecutor(_THREADS, "sweep") as threads:
            for some in self._batches(self._opened(threads, drop), _DROPS_A_STEP):
                yield self._step(some, [])
            # In their old order, so that neighbours stay neighbours.
            waiting: list[_Opened] = []
            size = 0
            for opened in self._opened(threads, rewrite):
                if self._whole(opened):
                    waiting.append(opened)
                    size += opened.size
                if size >= self._at_once(_MOVES_A_STEP):
                    yield self._step(waiting, self._packed(threads, waiting))
                    waiting, size = [], 0
            if waiting:
                yield self._step(waiting, self._packed(threads, waiting))
            for some in self._batches(self._opened(threads, leave), _LOOKS_A_STEP):
                yield self._unindex(some)
            for _ in self._opened(threads, look):
                pass

    def _opened(self, threads: ThreadPoolExecutor, frames_: Iterable[Counted]) -> Iterator[_Opened]:
        """Frames by their numbers, but for those that are gone or tell nothing, or must stay."""
        for _, opened in in_order(threads, self._open, sorted(frames_)):
            if opened is None:
                continue
            if opened.astray:
                self._unindex([opened])
            else:
                yield opened

    def _batches(self, opened: Iterator[_Opened], size: int) -> Iterator[list[_Opened]]:
        while some := list(islice(opened, self._at_once(size))):
            yield some

    def _at_once(self, size: int) -> int:
        """How much of something makes a step, as things are."""
        return size * _ALONE if self.turns.alone else size

    def _open(self, frame: Counted) -> _Opened | None:
        """Decode a frame and name what is dead in it and what lives."""
        with self.vault.read() as reader:
            data = reader.frame(frame.number)
        if data is None:
            return None
        try:
            objects = frames.decode(data)
        except Damaged:
            self.tally.unreadable.append(frame.number)
            return None
        opened = _Opened(frame.number, frame.length, slots=frame.dead)
        for slot, content in enumerate(objects):
            oid = object_id(content)
            if frame.dead >> slot & 1:
                opened.dead.append((oid, tables.location(frame.number, slot)))
            else:
                opened.alive.append((oid, content))
        opened.astray = self._astray(opened.dead)
        for oid, place in opened.astray:
            opened.dead.remove((oid, place))
            opened.slots &= ~(1 << (place & 0xFFFF))
        return opened

    def _astray(self, dead: Sequence[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
        """Those of which the index says too little, or something else than the frames."""
        with self.vault.read() as reader:
            rows = reader.locate([oid for oid, _ in dead])
        lacking = []
        elsewhere: dict[bytes, tuple[int, int]] = {}
        for (oid, place), row in zip(dead, rows, strict=True):
            if row is None and self.marks.may_lack(oid):
                lacking.append((oid, place))
            elif row is not None and row != place and not self.marks.unneeded(row):
                elsewhere[oid] = row, place
        there = entries.held(self.vault, [(row, oid) for oid, (row, _) in elsewhere.items()])
        lacking += [(oid, place) for oid, (_, place) in elsewhere.items() if oid not in there]
        return lacking

    def _whole(self, opened: _Opened) -> bool:
        """Whether what lives in the frame is what the index says: else its bytes are damaged."""
        with self.vault.read() as reader:
            places = reader.locate([oid for oid, _ in opened.alive])
        if all(place is not None for place in places):
            return True
        self.tally.unreadable.append(opened.number)
        return False

    def _packed(self, threads: ThreadPoolExecutor, opened: Iterable[_Opened]) -> list[Frame]:
        """The living objects in new frames, blocks and nodes apart."""
        block = self.vault.options.block_size
        every = [pair for each in opened for pair in each.alive]
        blocks = [pair for pair in every if len(pair[1]) == block]
        nodes = [pair for pair in every if len(pair[1]) != block]
        parts = chain(_by_size(blocks, FRAME_BYTES), _by_size(nodes, FRAME_BYTES))
        return list(threads.map(self._frame, parts))

    def _frame(self, pairs: Sequence[tuple[bytes, bytes]]) -> Frame:
        ids = tuple(oid for oid, _ in pairs)
        return Frame(frames.encode([data for _, data in pairs], self.codec), ids)

    # -- transactions ------------------------------------------------------------------------------

    def _step(self, old: Sequence[_Opened], new: Sequence[Frame]) -> int:
        """Move what lives, forget what is dead, and drop the old frames."""
        with self.turns.write() as writer:
            self._forget(writer, old)
            writer.move_frames(new)
            for opened in old:
                writer.set_dead(opened.number, 0)
            writer.drop_frames([opened.number for opened in old])
        length = sum(opened.length for opened in old)
        self.tally.bytes_freed += length - sum(len(frame.data) for frame in new)
        if new:
            self.tally.frames_rewritten += len(old)
        else:
            self.tally.frames_dropped += len(old)
        return length

    def _unindex(self, opened: Sequence[_Opened]) -> int:
        """Forget what is dead in frames that stay, and say where it lies; find what is astray."""
        with self.turns.write() as writer:
            self._forget(writer, opened)
            for each in opened:
                for oid, place in each.astray:
                    writer.put(tables.INDEX, oid, tables.pack_location(place))
                writer.set_dead(each.number, each.slots)
        return 0

    def _forget(self, writer: Writer, opened: Iterable[_Opened]) -> None:
        dead = {pair for each in opened for pair in each.dead}
        ids = list({oid for oid, _ in dead})
        places = zip(ids, writer.locate(ids), strict=True)
        lost = [oid for oid, place in places if (oid, place) in dead]
        writer.unindex(lost)
        self.tally.objects += len(lost)


def _by_size(
    pairs: Iterable[tuple[bytes, bytes]], limit: int
) -> Iterator[list[tuple[bytes, bytes]]]:
    """Runs of objects of about ``limit`` bytes each."""
    some: list[tuple[bytes, bytes]] = []
    size = 0
    for pair in pairs:
        some.append(pair)
        size += len(pair[1])
        if size >= limit or len(some) == frames.MAX_OBJECTS:
            yield some
            some, size = [], 0
    if some:
        yield some
