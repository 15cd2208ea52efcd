"""Images into a vault: bytes -> blocks -> tree -> one event.

    image ─ reader thread, 4 MiB ahead ─> leaves of 32 blocks ─> Builder (tree) ─┐
                                             └ leaf differs from parent's ─> ObjectWriter

A leaf that the branch's present tree has in the same place is known to be stored.  Whether it is
the same is mostly told by one hash over the whole run of its 32 blocks, kept in the table ``runs``:
that is four times as fast as hashing block by block.  New blocks go to disk as they come, in
commits without an event; only the last commit, with the event, makes them part of history.  An
import that stops before leaves blocks that nothing points at, and the same command run again finds
them there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from blockvault.errors import BadRequest, Busy, Conflict, IOFailed
from blockvault.ids import ZERO_ID, object_id
from blockvault.model import events, tree
from blockvault.model.builder import Builder
from blockvault.model.names import check_ref_name, check_volume_name
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.model.tree import Scratch
from blockvault.ops import Progress, images, refs, silent, snapshots
from blockvault.ops.images import RawImage
from blockvault.store import tables

if TYPE_CHECKING:
    from blockvault.store.frames import Frame
    from blockvault.vault import Vault

_CHUNK_LEAVES = 8
_READ_AHEAD = 2
_COMMIT_BYTES = 64 << 20


class Image(NamedTuple):
    """One image to import; ``format`` None takes it from the file's name."""

    path: Path
    volume: str
    format: str | None = None


def import_images(
    vault: Vault,
    images_: Sequence[Image],
    *,
    branch: str | None = None,
    message: str = "",
    author: str | None = None,
    allow_backing: bool = False,
    progress: Progress | None = None,
) -> Snapshot:
    """Make the images volumes of the branch's next snapshot; other volumes stay as they are.

    The branch is made when it does not exist.  Nothing is recorded unless every image was read
    whole and did not change meanwhile.
    """
    _check_names(images_)
    with ExitStack() as stack:
        stack.enter_context(vault.guard())
        sources = [
            (image, stack.enter_context(_opened(vault, image, allow_backing))) for image in images_
        ]
        for _, source in sources:
            if not source.size:
                raise BadRequest(f"{source.path} is empty: a volume has at least one byte")
        target = hold_target(vault, branch, stack)
        volumes = {volume.name: volume for volume in target.volumes}
        intake = Intake(vault, progress or silent, sum(source.size for _, source in sources))
        for image, source in sources:
            volumes[image.volume] = intake.volume(image.volume, source, volumes.get(image.volume))
        intake.finish()
        for _, source in sources:
            source.check_unchanged()
        names = " ".join(str(image.path) for image in images_)
        return target.record(volumes.values(), names, message, author)


class Target(NamedTuple):
    """The branch that an import goes to, held until it is recorded."""

    vault: Vault
    branch: int | snapshots.NewBranch
    volumes: Sequence[Volume]

    def record(
        self,
        volumes: Iterable[Volume],
        source: str,
        message: str,
        author: str | None,
        attachments: Sequence[Volume] = (),
    ) -> Snapshot:
        """Make ``volumes`` the branch's state and its next snapshot."""
        ordered = tuple(sorted(volumes))
        made = snapshots.record(
            self.vault,
            self.branch,
            ordered,
            lambda branch, snapshot: events.Imported(
                branch=branch, volumes=ordered, snapshot=snapshot, source=source
            ),
            message=message,
            author=author,
            attachments=attachments,
        )
        # The import is recorded: a disk that cannot give space back now changes nothing of that.
        with suppress(IOFailed, Busy):
            self.vault.give_back()
        return made


def hold_target(vault: Vault, name: str | None, stack: ExitStack) -> Target:
    """The named branch under a lease, the current one for None, or one that is to be made."""
    if name is not None and name not in {branch.name for branch in refs.listing(vault)}:
        check_ref_name(name)
        return Target(vault, snapshots.NewBranch(name), ())
    session = stack.enter_context(vault.session(name, holder="an import"))
    return Target(vault, session.branch.id, session.checkpoint())


def _check_names(images_: Sequence[Image]) -> None:
    if not images_:
        raise BadRequest("no image to import")
    names = [image.volume for image in images_]
    for name in names:
        check_volume_name(name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Conflict(f"two images would become volume '{twice[0]}'; import them one by one")


def _opened(vault: Vault, image: Image, allow_backing: bool) -> AbstractContextManager[RawImage]:
    chosen = images.format_of(image.path, image.format)
    return images.opened(image.path, chosen, vault.path, allow_backing)


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
        leaf = size * tree.FANOUT
        for offset, data in _chunks(image, leaf):
            self._advance(offset)
            builder.skip(offset // leaf - builder.done)
            self._leaves(builder, data, size)
            if self._uncommitted >= _COMMIT_BYTES:
                self._commit(self._objects.take())
        root = builder.finish()
        self._done += image.size
        self._advance(0)
        return Volume(name, image.size, root)

    def finish(self) -> None:
        """Store what is left, so that an event may name it."""
        if self._scratch is None:
            self._commit(self._objects.finish())

    def _advance(self, offset: int) -> None:
        self._progress(self._done + offset, self._total)

    def _leaves(self, builder: Builder, data: bytes, size: int) -> None:
        """Take the leaves of one chunk: zeros, the same as before, or new."""
        view = memoryview(data)
        leaf = size * tree.FANOUT
        zeros = bytes(leaf)
        for start in range(0, len(data), leaf):
            if data.startswith(zeros, start):
                builder.skip(1)
                continue
            run = view[start : start + leaf]
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

    def _commit(self, frames: Sequence[Frame]) -> None:
        with self._vault.transaction() as transaction:
            transaction.add_frames(frames)
            transaction.add_runs(self._runs)
        self._runs.clear()
        self._uncommitted = 0


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
