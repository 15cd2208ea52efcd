"""New objects on their way in: known ones dropped, the rest compressed in frames.

``ObjectWriter`` takes whole runs of objects, asks the index once for each, and compresses what is
new in frames of 256 KiB, in threads: zstd works outside Python's lock.  Blocks and tree nodes go to
frames of their own, because they are read at different times.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from blockvault.ids import ZERO_ID, object_id
from blockvault.store import frames, workers
from blockvault.store.codec import Codec
from blockvault.store.frames import Frame
from blockvault.store.types import Store

if TYPE_CHECKING:
    from concurrent.futures import Future

FRAME_BYTES = 256 << 10
IN_FLIGHT = 2 * workers.WORKERS
INLINE_BELOW = 64 << 10
"""A last frame smaller than this is compressed where it stands: a thread would take longer."""


class ObjectWriter:
    """Collects the new objects of one or more commits, from any thread.

    ``take`` gives the frames that are full, ``finish`` all of them; the caller stores them with
    ``Writer.add_frames``.  At most a few frames wait uncompressed; those that are ready wait until
    they are taken, so a long import takes (and commits) now and then.  ``sparing`` is for writers
    that cannot wait (``codec``).
    """

    def __init__(
        self, store: Store, frame_bytes: int = FRAME_BYTES, *, sparing: bool = False
    ) -> None:
        self._store = store
        self._codec = Codec(store.options.compression, sparing=sparing)
        self._frame_bytes = frame_bytes
        self._pending: set[bytes] = set()
        self._looked_at = 0
        self._blocks, self._nodes = _Batch(), _Batch()
        self._sealed: deque[tuple[tuple[bytes, ...], Future[bytes]]] = deque()
        self._ready: list[Frame] = []
        self._guard = threading.Lock()

    def add_blocks(self, ids: Sequence[bytes], datas: Sequence[bytes | memoryview]) -> int:
        """Take the blocks that are neither stored nor pending; return how many those are.

        ``ids[i]`` is the id of ``datas[i]``; ``ZERO_ID`` is passed over.  The buffers are not kept
        beyond the call.
        """
        with self._guard:
            return self._add(self._blocks, ids, datas)

    def add_node(self, data: bytes) -> bytes:
        """Take a tree node, snapshot or other small object; return its id."""
        oid = object_id(data)
        with self._guard:
            self._add(self._nodes, (oid,), (data,))
        return oid

    add = add_node

    def add_many(self, nodes: Sequence[bytes]) -> list[bytes]:
        """``add_node`` for many, which looks them up together."""
        ids = [object_id(node) for node in nodes]
        with self._guard:
            self._add(self._nodes, ids, nodes)
        return ids

    def take(self) -> list[Frame]:
        """The full frames, compressed; what is left of the last ones stays for later.

        Their objects count as pending until the caller says that they are ``stored``.
        """
        with self._guard:
            return self._take()

    def waiting(self) -> set[bytes]:
        """The objects that no full frame has: those that ``take`` leaves for later."""
        with self._guard:
            return {*self._blocks.ids, *self._nodes.ids}

    def seal(self) -> list[Frame]:
        """``take`` with the unfinished frames too."""
        with self._guard:
            for batch in (self._blocks, self._nodes):
                if batch.ids:
                    self._seal(batch)
            return self._take()

    def finish(self) -> list[Frame]:
        """``seal`` for the last time: then the collector knows nothing any more."""
        taken = self.seal()
        with self._guard:
            self._pending.clear()
            self._looked_at = 0
        return taken

    def stored(self, frames: Sequence[Frame], number: int) -> None:
        """Frames that were taken stand in the store since commit ``number``, 0 if it was none."""
        with self._guard:
            for frame in frames:
                self._pending.difference_update(frame.ids)
            # What is pending was not in our own commit, so that one is as good a look as the first.
            if number == self._looked_at + 1:
                self._looked_at = number
            if not self._pending:
                self._looked_at = 0

    def passed(self, frames: Sequence[Frame], number: int) -> None:
        """The commit ``number`` stored these frames of another collector."""
        with self._guard:
            if number == self._looked_at + 1 and self._pending.isdisjoint(
                oid for frame in frames for oid in frame.ids
            ):
                self._looked_at = number

    def _add(self, batch: _Batch, ids: Sequence[bytes], datas: Sequence[bytes | memoryview]) -> int:
        fresh = self._fresh(ids)
        self._pending |= fresh
        count = len(fresh)
        for oid, data in zip(ids, datas, strict=True):
            if oid not in fresh:
                continue
            fresh.discard(oid)
            batch.put(oid, data)
            if batch.size >= self._frame_bytes or len(batch.ids) == frames.MAX_OBJECTS:
                self._seal(batch)
        batch.own()
        return count

    def _fresh(self, ids: Sequence[bytes]) -> set[bytes]:
        fresh = set(ids)
        fresh.discard(ZERO_ID)
        fresh -= self._pending
        if fresh:
            with self._store.read() as reader:
                fresh -= reader.known(list(fresh))
                self._looked_at = self._looked_at or reader.txn_id
        return fresh

    def _seal(self, batch: _Batch) -> None:
        ids, datas, size = batch.empty()
        if size < INLINE_BELOW and not self._sealed:
            self._ready.append(Frame(frames.encode(datas, self._codec), ids))
            return
        # This copies, so that the caller's buffers are free when add_blocks returns.
        future = workers.pool().submit(frames.shrunk, frames.plain(datas), self._codec)
        self._sealed.append((ids, future))
        if len(self._sealed) > IN_FLIGHT:
            self._collect()

    def _collect(self) -> None:
        ids, future = self._sealed.popleft()
        self._ready.append(Frame(future.result(), ids))

    def _take(self) -> list[Frame]:
        while self._sealed:
            self._collect()
        taken = [frame._replace(absent_at=self._looked_at) for frame in self._ready]
        self._ready = []
        return taken


class _Batch:
    """Objects that will share a frame."""

    __slots__ = ("datas", "ids", "size")

    def __init__(self) -> None:
        self.ids: list[bytes] = []
        self.datas: list[bytes | memoryview] = []
        self.size = 0

    def put(self, oid: bytes, data: bytes | memoryview) -> None:
        self.ids.append(oid)
        self.datas.append(data)
        self.size += len(data)

    def own(self) -> None:
        """Copy what still lies in a caller's buffer."""
        for at in range(len(self.datas) - 1, -1, -1):
            if isinstance(self.datas[at], bytes):
                break
            self.datas[at] = bytes(self.datas[at])

    def empty(self) -> tuple[tuple[bytes, ...], list[bytes | memoryview], int]:
        taken = tuple(self.ids), self.datas, self.size
        self.ids, self.datas, self.size = [], [], 0
        return taken
