"""The bytes of images into the vault: blocks, trees, and the commits that store them.

    image ─ reader thread, some MiB ahead ─> Hasher: what each leaf of 32 blocks hashes to ─┐
        ┌───────────────────────────────────────────────────────────────────────────────────┘
        ├ zeros, or the leaf that the parent's tree has there ─> Builder (tree) ─┐
        └ another leaf: its blocks that the store lacks ─────────────────────────┴> ObjectWriter
                                               every 16 MiB: commit thread ─> store <─┘

A leaf that the branch's present tree has in the same place is known to be stored if one hash over
the whole run of its 32 blocks says that it is the same: that is four times as fast as hashing block
by block.  The table ``runs`` has these hashes; it is emptied when anything is given up for lost.
Where it has none, each block is looked up, so that what was lost is stored again.  A leaf's hash is
stored when all of its objects are: of an import that ends half-way the next one believes them.

Four things go on at once: the next data is read, this one hashed, new blocks are compressed, and
what was compressed before is committed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from blockvault.ids import ZERO_ID, object_id
from blockvault.model import tree
from blockvault.model.builder import Builder, EarlierLeaves
from blockvault.model.snapshot import Volume
from blockvault.model.tree import FANOUT, Scratch
from blockvault.ops import Progress, hashing
from blockvault.ops.ahead import in_order
from blockvault.ops.hasher import Hasher
from blockvault.ops.images import RawImage
from blockvault.store import tables

if TYPE_CHECKING:
    from blockvault.store.frames import Frame
    from blockvault.vault import Vault

_CHUNK_BYTES = 1 << 20
_CHUNKS = 4
"""How many are in memory: one whose blocks are stored, one that is hashed, those read ahead."""
_COMMIT_BYTES = 16 << 20
_MOST_HELD = 1024
"""Leaves whose hashes wait for an object in a frame that is not full; then it need not be full.

In an import of new content fewer wait: those whose nodes are not yet a frame.
"""


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
        self._held = 0
        self._runs: dict[bytes, hashing.Other] = {}
        self._begun: Future[None] | None = None

    def volume(self, name: str, image: RawImage, before: Volume | None) -> Volume:
        """Read the whole image; its tree is stored, but for what ``finish`` still holds."""
        size = self._vault.options.block_size
        nodes = self._scratch or self._vault.objects
        builder = Builder(self._scratch or self._objects, tree.blocks_in(image.size, size))
        earlier = EarlierLeaves(nodes, *_root(before, size))
        # Left, whatever happens, only when its commit has ended: the vault may be closed then.
        with ThreadPoolExecutor(1, "commit") as committer:
            for chunk in self._chunks(image, earlier):
                self._advance(chunk.first * size * FANOUT)
                builder.skip(chunk.first - builder.done)
                self._leaves(builder, chunk)
                if self._uncommitted >= _COMMIT_BYTES:
                    self._settle()
                    self._begun = committer.submit(self._commit, *self._take())
        self._settle()
        root = builder.finish()
        self._done += image.size
        self._advance(0)
        return Volume(name, image.size, root)

    def finish(self) -> None:
        """Store what is left, so that an event may name it."""
        if self._scratch is None:
            self._commit(self._objects.finish(), self._ready())

    def _advance(self, offset: int) -> None:
        self._progress(self._done + offset, self._total)

    def _chunks(self, image: RawImage, earlier: EarlierLeaves) -> Iterator[_Chunk]:
        """The image's leaves that hold data, read ahead by a thread."""
        size = self._vault.options.block_size
        leaf = size * FANOUT
        length = max(leaf, _CHUNK_BYTES)
        with Hasher(_CHUNKS, length, leaf, size) as hasher, ThreadPoolExecutor(1, "read") as reader:

            def fill(part: _Part) -> None:
                read = partial(image.read_into, part.start)
                hasher.fill(part.stop - part.start, part.digests, read)

            parts = self._parts(image, earlier, leaf, length)
            for part, _ in in_order(reader, fill, parts, _CHUNKS):
                data, said = hasher.answer()
                leaves = tuple(hashing.leaves(said, FANOUT))
                yield _Chunk(part.start // leaf, data, leaves, part.before)

    def _parts(
        self, image: RawImage, earlier: EarlierLeaves, leaf: int, longest: int
    ) -> Iterator[_Part]:
        """Ranges of whole leaves that hold data, and what is known of those."""
        for start, stop in _spans(image, leaf, longest):
            before = earlier.ids(range(start // leaf, stop // leaf))
            yield _Part(start, stop, before, self._digests(before))

    def _digests(self, leaves: Sequence[bytes]) -> bytes:
        """The hashes over the whole of these leaves; zeros for what is not known."""
        if not any(map(ZERO_ID.__ne__, leaves)):
            return b""
        with self._vault.read() as reader:
            return b"".join(reader.get(tables.RUNS, leaf) or ZERO_ID for leaf in leaves)

    def _leaves(self, builder: Builder, chunk: _Chunk) -> None:
        """Take the leaves of one chunk; store those that are not as before, and their blocks."""
        size = self._vault.options.block_size
        new: list[bytes] = []
        blocks: list[memoryview] = []
        for number, (what, before) in enumerate(zip(chunk.leaves, chunk.before, strict=True)):
            if not isinstance(what, hashing.Other):
                builder.put(before if what == hashing.SAME else ZERO_ID)
                continue
            oid = object_id(what.ids)
            builder.put(oid)
            if self._scratch is None:
                self._runs[oid] = what
            if self._scratch is None or oid != before:
                new.append(what.ids)
                start = number * size * FANOUT
                stop = start + size * FANOUT
                blocks += [chunk.data[at : at + size] for at in range(start, stop, size)]
        if not new:
            return
        (self._scratch or self._objects).add_many(new)
        if self._scratch is None:
            self._objects.add_blocks(tree.split_ids(b"".join(new)), blocks)
            self._uncommitted += len(blocks) * size

    def _take(self) -> tuple[Sequence[Frame], Mapping[bytes, bytes]]:
        """What a commit stores: full frames, and the hashes of the leaves that it makes whole."""
        objects, self._uncommitted = self._objects, 0
        frames = objects.seal() if self._held > _MOST_HELD else objects.take()
        runs = self._ready()
        self._held = len(self._runs)
        return frames, runs

    def _ready(self) -> Mapping[bytes, bytes]:
        """Take out the hashes of the leaves all of whose objects are in frames."""
        waiting = self._objects.waiting()
        noted, self._runs = self._runs, {}
        runs: dict[bytes, bytes] = {}
        for leaf, run in noted.items():
            if leaf in waiting or not waiting.isdisjoint(tree.split_ids(run.ids)):
                self._runs[leaf] = run
            else:
                runs[leaf] = run.digest
        return runs

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


class _Part(NamedTuple):
    """A range of an image, the earlier state's leaves there, and the hashes over those."""

    start: int
    stop: int
    before: Sequence[bytes]
    digests: bytes


class _Chunk(NamedTuple):
    """Some leaves: their bytes, what those hash to, and the earlier state's leaves there."""

    first: int
    data: memoryview
    leaves: Sequence[bytes | hashing.Other]
    before: Sequence[bytes]


def _root(volume: Volume | None, size: int) -> tuple[bytes, int]:
    """A volume's root and number of blocks."""
    return (volume.root, tree.blocks_in(volume.size, size)) if volume else (ZERO_ID, 0)


def _spans(image: RawImage, leaf: int, longest: int) -> Iterator[tuple[int, int]]:
    """The image's data runs, widened to whole leaves and cut into chunks."""
    done = 0
    for start, end in image.data_runs():
        start, end = max(done, start // leaf * leaf), -(-end // leaf) * leaf
        for at in range(start, end, longest):
            yield at, min(end, at + longest)
        done = max(done, end)
