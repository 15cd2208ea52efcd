"""One volume of a branch while it is being written: a device over three layers.

    dirty     block -> bytes   written, not yet stored (what a disk calls its volatile cache)
    overlay   block -> id      stored since the last waypoint
    tree      root             everything older

A read looks at them in that order.  The session moves blocks down: after a commit ``settle_…``
turns dirty bytes into ids, after a checkpoint ``rebase`` empties the overlay into a new root.  Both
put the lower layer in place before they clear the upper one, so a reader that runs beside them,
with no lock, sees each block in one layer or the other and never an older state.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from blockvault.model import events, extents
from blockvault.model.overlay import LONG_RUN, Overlay
from blockvault.ops.reading import StateDevice

if TYPE_CHECKING:
    from blockvault.committer import Committer


class HeadDevice(StateDevice):
    """The writable head of one volume; see ``blockvault.device.Device``."""

    read_only = False

    def __init__(
        self, session: Committer, name: str, size: int, root: bytes, overlay: Overlay
    ) -> None:
        vault = session.vault
        super().__init__(vault.objects, name, size, root, overlay, vault.options.block_size)
        self._session = session
        self.dirty: dict[int, bytes] = {}
        self.runs: dict[int, tuple[bytes, bytes]] = {}
        """Of leaves that were written whole since the last waypoint: id and hash of the run."""
        self._clearing = 0
        """Long runs that were taken and are not stored yet; see ``_take``."""

    @property
    def quick_flush(self) -> bool:
        """Whether a flush is likely to wait for one short sync only."""
        return self._session.journaled

    # -- reading: the dirty layer over what StateDevice reads -------------------------------------

    def block(self, number: int) -> bytes:
        return self.dirty.get(number) or super().block(number)

    def held(self, first: int, stop: int) -> bool:
        dirty = self.dirty
        return bool(dirty) and any(block in dirty for block in range(first, stop))

    def blocks(self, first: int, stop: int) -> list[bytes]:
        return self.scattered(range(first, stop)) if self.dirty else super().blocks(first, stop)

    def scattered(self, numbers: Sequence[int]) -> list[bytes]:
        dirty = self.dirty
        if not dirty:
            return super().scattered(numbers)
        held = [dirty.get(block) for block in numbers]
        below = iter(
            super().scattered(
                [block for block, data in zip(numbers, held, strict=True) if data is None]
            )
        )
        return [next(below) if data is None else data for data in held]

    def upper_runs(self, first: int, stop: int) -> Iterable[extents.Run]:
        # Copied in one step, for the committer takes blocks out of it beside us.
        dirty = sorted(block for block in self.dirty.copy() if first <= block < stop)
        over = (extents.Run(block, block + 1, self._reads_zero(block)) for block in dirty)
        return extents.overlaid(super().upper_runs(first, stop), over)

    def _reads_zero(self, block: int) -> bool:
        return self.dirty.get(block) == self._zero

    # -- writing ---------------------------------------------------------------------------------

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Take ``data``; durable after the next ``flush``."""
        self.write_many(((offset, data),))

    def write_many(self, writes: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """Several writes, in order, each one event; all are checked before any is taken."""
        count = 0
        for offset, data in writes:
            self.check(offset, len(data))
            count += len(data)
        self._session.make_room(count)
        while not self._take(writes):
            self._session.commit(barrier=False)

    def _take(self, writes: Sequence[tuple[int, bytes | memoryview]]) -> bool:
        """Take writes; False if parts of blocks must wait until a long run is cleared.

        Such a run is not in the dirty layer, so the rest of a block would be what it was before.
        """
        size, session = self.block_size, self._session
        with session.pending.mutex:
            if self._clearing and any(at % size or len(data) % size for at, data in writes):
                return False
            now = events.now_us()
            taken, entries = 0, session.pending.entries
            try:
                for offset, data in writes:
                    length = len(data)
                    first, skip = divmod(offset, size)
                    if not skip and length == size:
                        # A copy, even of bytes: settling tells blocks apart by identity.
                        block = bytes(data if type(data) is memoryview else memoryview(data))
                        self.dirty[first] = block
                        entries.append((now, self, offset, length, (block,)))
                        taken += size
                    elif length:
                        blocks = self._cut(offset, data)
                        span = range(first, first + len(blocks))
                        self.dirty.update(zip(span, blocks, strict=True))
                        entries.append((now, self, offset, length, blocks))
                        # What is held is whole blocks, however few bytes of each were written.
                        taken += size * len(blocks)
            finally:
                # Those before one whose block cannot be read are taken all the same.
                if taken:
                    session.took(taken)
        return True

    def zero(self, offset: int, length: int) -> None:
        """The range reads as zeros; whole blocks of it take no space."""
        self._clear(offset, length, events.ZEROED)

    def trim(self, offset: int, length: int) -> None:
        """The guest needs the range no more: whole blocks in it read as zeros, edges stay."""
        self._clear(offset, length, events.TRIMMED)

    def flush(self) -> None:
        """Return when everything written to the branch before this call is durable.

        It may be a moment later that others see it in the vault; ``Session.flush`` waits for that.
        """
        self._session.sync()

    def flush_ahead(self) -> None:
        """A flush will follow at once, in all likelihood: do what it would wait for."""
        self._session.ahead()

    def _clear(self, offset: int, length: int, code: int) -> None:
        self.check(offset, length)
        size, end = self.block_size, offset + length
        start = -(-offset // size) * size
        stop = end if end == self.size else end // size * size
        if code == events.ZEROED:
            head = (offset, min(start, end))
            tail = (max(stop, head[1]), end)
            edges = [(at, bytes(to - at)) for at, to in (head, tail) if at < to]
            if edges:
                self.write_many(edges)
        if start < stop:
            self._clear_blocks(start, stop, code)

    def _clear_blocks(self, start: int, stop: int, code: int) -> None:
        """Clear whole blocks: short runs through the dirty layer, long ones straight to the log.

        Each short run has a mark of its own, so that ``settle`` can tell it from a later one.
        """
        self._session.make_room(0)
        with self._session.pending.mutex:
            long = self._take_clear(events.now_us(), start, stop, code)
        if long:
            self._session.commit(barrier=False)

    def _take_clear(self, time_us: int, start: int, stop: int, code: int) -> bool:
        """Take a clear, under the mutex; True if it is a long run."""
        first, last = start // self.block_size, -(-stop // self.block_size)
        mark = bytes(self.block_size) if last - first < LONG_RUN else b""
        if mark:
            self.dirty.update(dict.fromkeys(range(first, last), mark))
        else:
            self._clearing += 1
        self._session.pending.entries.append((time_us, self, start, stop - start, (code, mark)))
        # What is to be settled counts, however little memory it takes: a commit is bounded.
        self._session.took((last - first) * len(mark))
        return not mark

    def restore(self, time_us: int, offset: int, length: int, code: int, data: bytes) -> None:
        """Take what a session before this one had taken: ``data`` is whole blocks, code 0, or a
        clear.
        """
        self.check(offset, length)
        size = self.block_size
        with self._session.pending.mutex:
            if code:
                self._take_clear(time_us, offset, offset + length, code)
                return
            blocks = [data[at : at + size] for at in range(0, len(data), size)]
            first = offset // size
            self.dirty.update(zip(range(first, first + len(blocks)), blocks, strict=True))
            self._session.pending.entries.append((time_us, self, offset, length, blocks))
            self._session.took(len(data))

    def _cut(self, offset: int, data: bytes | memoryview) -> list[bytes]:
        """Whole blocks that hold ``data`` at ``offset``, the edges filled from what is there."""
        size = self.block_size
        skip, rest = offset % size, -(offset + len(data)) % size
        if skip or rest:
            head = self.block(offset // size)[:skip] if skip else b""
            tail = self.block((offset + len(data)) // size)[size - rest :] if rest else b""
            data = b"".join((head, data, tail))
        return [block for (block,) in struct.iter_unpack(f"{size}s", data)]

    # -- moving blocks down: only the session's committer calls these ------------------------------

    def settle_write(self, first: int, blocks: Sequence[bytes], ids: bytes) -> None:
        """A stored write: its ids become the overlay, its bytes leave unless written again."""
        self.objects.expect((ids,))
        self.overlay.write(first, ids)
        self._clean(enumerate(blocks, first))

    def settle_singles(self, written: Sequence[tuple[int, bytes, bytes]]) -> None:
        """``settle_write`` for writes of one block each, as (number, block, id) in order."""
        numbers, blocks, ids = zip(*written, strict=True)
        self.objects.expect(ids)
        self.overlay.write_singles(numbers, ids)
        self._clean(zip(numbers, blocks, strict=True))

    def settle_clear(self, first: int, count: int, mark: bytes) -> None:
        """A stored zero or trim."""
        self.overlay.clear(first, count)
        if not mark:
            with self._session.pending.mutex:
                self._clearing -= 1
            return
        self._clean((number, mark) for number in range(first, first + count))

    def settle_runs(self, runs: Mapping[int, tuple[bytes, bytes]]) -> None:
        """What is known of leaves that these writes set; the next fold tells which are still so."""
        self.runs.update(runs)

    def _clean(self, blocks: Iterable[tuple[int, bytes]]) -> None:
        """Stored blocks, with their numbers, leave the dirty layer unless written again."""
        dirty = self.dirty
        for number, block in blocks:
            if dirty.get(number) is block:
                del dirty[number]

    def rebase(self, root: bytes) -> None:
        """``root`` says all that the tree and the overlay said: it takes their place."""
        self.tree = self.tree.rebased(root, self.overlay)
        self.overlay = Overlay()
        self.runs = {}
