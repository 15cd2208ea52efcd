"""The bytes of images into the vault: blocks, trees, and the commits that store them.

    image ─ reader thread, 2 MiB ahead ─> leaves of 32 blocks ─> Builder (tree) ─┐
                     └ leaf differs from parent's ─> blocks ─────────────────────┴─> ObjectWriter
                                              every 64 MiB: commit thread ─> store <─┘

A leaf that the branch's present tree has in the same place is known to be stored.  Whether it is
the same is mostly told by one hash over the whole run of its 32 blocks, kept in the table ``runs``:
that is four times as fast as hashing block by block.  Four things go on at once: the next data is
read, this one hashed, new blocks are compressed, and what was compressed before is committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from blake3 import blake3

from blockvault.ids import ZERO_ID, object_id
from blockvault.model import tree
from blockvault.model.builder import Builder
from blockvault.model.snapshot import Volume
from blockvault.model.tree import Scratch
from blockvault.ops import Progress
from blockvault.ops.images import RawImage
from blockvault.store import tables

if TYPE_CHECKING:
    from blockvault.store.frames import Frame
    from blockvault.vault import Vault

_CHUNK_LEAVES = 8
_READ_AHEAD = 2
_COMMIT_BYTES = 16 << 20


class Intake:
    """Reads images one after another and stores what is new in them."""

    def __init__(
        self, vault: Vault, progress: Progress, total: int, scratch: Scratch | None = None
    ) -> None:
        """With ``scratch`` nothing is stored: it keeps the new tree nodes, in memory."""
        self._vault = vault
        self._objects = vault.new_objects()
        self._scratch = scratch
        self._progress = progress
        self._total = total
        self._done = 0
        self._uncommitted = 0
        self._runs: dict[bytes, bytes] = {}
        self._begun: Future[None] | None = None
        self._zero_id = object_id(bytes(vault.options.block_size))

    def volume(self, name: str, image: RawImage, before: Volume | None) -> Volume:
        """Read the whole image; its tree is stored, but for what ``finish`` still holds."""
        size = self._vault.options.block_size
        builder = Builder(
            self._scratch or self._objects,
            tree.blocks_in(image.size, size),
            nodes=self._scratch or self._vault.objects,
            parent=before.root if before else ZERO_ID,
            parent_blocks=tree.blocks_in(before.size, size) if before else 0,
        )
        # Left, whatever happens, only when its commit has ended: the vault may be closed then.
        with ThreadPoolExecutor(1, "commit") as committer:
            leaf = size * tree.FANOUT
            for offset, data in _chunks(image, leaf):
                self._advance(offset)
                builder.skip(offset // leaf - builder.done)
                self._leaves(builder, data, leaf)
                if self._uncommitted >= _COMMIT_BYTES:
                    self._settle()
                    self._begun = committer.submit(self._commit, *self._take(self._objects.take()))
        self._settle()
        root = builder.finish()
        self._done += image.size
        self._advance(0)
        return Volume(name, image.size, root)

    def finish(self) -> None:
        """Store what is left, so that an event may name it."""
        if self._scratch is None:
            self._commit(*self._take(self._objects.finish()))

    def _advance(self, offset: int) -> None:
        self._progress(self._done + offset, self._total)

    def _leaves(self, builder: Builder, data: bytes, leaf: int) -> None:
        """Take the leaves of one chunk: zeros, the same as before, or new."""
        view, zeros = memoryview(data), bytes(leaf)
        for start in range(0, len(data), leaf):
            if data.startswith(zeros, start):
                builder.skip(1)
                continue
            run = view[start : start + leaf]
            # Here and not in the thread that reads: hashing lets go of Python's lock, and the more
            # threads wait for it, the longer it takes to get it back.
            digest = blake3(run).digest()
            before = builder.earlier
            if before != ZERO_ID and self._digest(before) == digest:
                builder.keep()
            else:
                self._leaf(builder, run, digest)

    def _digest(self, leaf: bytes) -> bytes | None:
        with self._vault.read() as reader:
            return reader.get(tables.RUNS, leaf)

    def _leaf(self, builder: Builder, run: memoryview, digest: bytes) -> None:
        """Hash a leaf block by block and hand on the blocks, unless the parent has them all."""
        size = self._vault.options.block_size
        blocks = [run[at : at + size] for at in range(0, len(run), size)]
        ids = [blake3(block).digest() for block in blocks]
        if self._zero_id in ids:
            ids = [ZERO_ID if oid == self._zero_id else oid for oid in ids]
        joined = b"".join(ids)
        self._runs[object_id(joined)] = digest
        if not builder.add(joined) and self._scratch is None:
            self._objects.add_blocks(ids, blocks)
            self._uncommitted += len(run)

    def _take(self, frames: Sequence[Frame]) -> tuple[Sequence[Frame], Mapping[bytes, bytes]]:
        """What a commit stores: the frames, and the runs of the leaves read since the last one."""
        runs, self._runs, self._uncommitted = self._runs, {}, 0
        return frames, runs

    def _commit(self, frames: Sequence[Frame], runs: Mapping[bytes, bytes]) -> None:
        with self._vault.transaction() as transaction:
            transaction.add_frames(frames)
            transaction.add_runs(runs)
        self._objects.stored(frames, transaction.number)

    def _settle(self) -> None:
        """Wait for the commit that was begun last, if any; what failed in it fails here."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()


def _chunks(image: RawImage, leaf: int) -> Iterator[tuple[int, bytes]]:
    """``(offset, data)`` of whole leaves that hold data, read ahead by a thread."""
    with ThreadPoolExecutor(1, "read") as reader:
        ahead: deque[tuple[int, Future[bytes]]] = deque()
        for offset, length in _spans(image, leaf):
            ahead.append((offset, reader.submit(image.read, offset, length)))
            if len(ahead) > _READ_AHEAD:
                at, data = ahead.popleft()
                yield at, data.result()
        for at, data in ahead:
            yield at, data.result()


def _spans(image: RawImage, leaf: int) -> Iterator[tuple[int, int]]:
    """The image's data runs, widened to whole leaves and cut into chunks."""
    done = 0
    for start, end in image.data_runs():
        start, end = max(done, start // leaf * leaf), -(-end // leaf) * leaf
        for at in range(start, end, leaf * _CHUNK_LEAVES):
            yield at, min(end - at, leaf * _CHUNK_LEAVES)
        done = max(done, end)
