"""A session: the writable head of one branch, held under a lease.

    device.write ─> pending (memory, bounded) ─ commit ─> frames + index + one log record, durable
                                                  └─> overlays; too many entries ─> checkpoint

Writes only take a short mutex and return.  ``commit`` takes everything pending, hashes and stores
it, and appends the events in one transaction; commits are serial, so the log keeps the order of the
writes.  ``flush`` is a commit that ends in a barrier, and flushes that wait for one another share
it.  When a commit fails (a full disk), its writes go back to the front of the pending ones: they
stay readable, and the next flush tries again.

A checkpoint folds the overlays into new tree roots, so that opening the branch never replays more
than ``CHECKPOINT_BLOCKS`` blocks; a snapshot is a checkpoint that also has a name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from mmap import mmap
from types import TracebackType
from typing import TYPE_CHECKING, Any

from blockvault.errors import Conflict, NotFound
from blockvault.head import HeadDevice
from blockvault.ids import ZERO_ID, object_id
from blockvault.lease import Lease
from blockvault.model import events
from blockvault.model.overlay import Overlay
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import refs, resolve, snapshots, states

if TYPE_CHECKING:
    from blockvault.store.frames import Frame
    from blockvault.vault import Vault

CHECKPOINT_BLOCKS = 16384
"""Overlay entries that start a checkpoint; the format allows 65,536 (format.md)."""
COMMIT_BYTES = 8 << 20
"""Pending bytes that start a commit in the background, so that a flush has little left to do."""
TRANSACTION_BYTES = 32 << 20
"""Bytes of writes that one transaction stores at most, whatever is pending."""
PENDING_BYTES = 64 << 20
"""Pending bytes at which writers wait: the session's volatile cache."""

Settling = tuple[Callable[..., None], tuple[Any, ...]]
"""What a device has to do once a write of its is stored, and with which arguments."""
Pending = tuple[int, HeadDevice, int, int, Any]
"""time_us, device, offset, length, and the blocks written or ``(event code, mark)`` of a clear."""


def _some(pending: Sequence[Pending], left: int) -> tuple[int, int]:
    """How many of the first ``left`` writes make one transaction, and the bytes that they hold.

    Bounded, so that neither the log record nor what an opening replays outgrows the format.
    """
    size = 0
    for count in range(left):
        held = _held(pending[count])
        if count and size + held > TRANSACTION_BYTES:
            return count, size
        size += held
    return left, size


def _held(write: Pending) -> int:
    """The bytes that ``took`` counted for a write; a short clear counts as the blocks it clears."""
    _, device, _, length, what = write
    if isinstance(what[0], int):
        return -(-length // device.block_size) * len(what[1])
    return len(what) * device.block_size


class Session:
    """Opened by ``Vault.session``; close it, or use it in a ``with``, to flush and release."""

    def __init__(self, vault: Vault, branch: refs.Branch, holder: str) -> None:
        self.vault = vault
        self.branch = branch
        self.mutex = threading.Lock()
        self.pending: list[Pending] = []
        self.pending_bytes = 0
        self.limit = PENDING_BYTES
        self._commit_lock = threading.RLock()
        self._taken = 0
        self._durable = 0
        self._barrier_due = False
        self._background: threading.Thread | None = None
        self.unstored: bytearray | mmap = bytearray(1)
        """One byte, 1 while taken writes are in memory only.  Shared memory put in its place tells
        others, who outlive this process, whether its end lost anything."""
        self._open_gate = threading.Event()
        self._open_gate.set()
        self._lease = Lease(vault.path, branch.id, branch.name, holder)
        try:
            self._heads = self._open_heads()
        except BaseException:
            self._lease.release()
            raise

    def _open_heads(self) -> dict[str, HeadDevice]:
        """The branch's volumes as they are now that nobody else can move it."""
        with self.vault.read() as reader:
            self.branch = refs.leased(reader, self.branch)
        position = resolve.head_of(self.vault, self.branch, exact=True)
        self._barrier_due = self.branch.barrier_seq < self.branch.seq
        folded = states.overlays(self.vault, position)
        return {
            volume.name: HeadDevice(
                self, volume.name, volume.size, volume.root, folded.get(volume.name, Overlay())
            )
            for volume in position.volumes
        }

    # -- volumes -------------------------------------------------------------------------------

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """Name and size of each volume; the roots are those of the last checkpoint."""
        return tuple(
            Volume(name, head.size, head.tree.root) for name, head in sorted(self._heads.items())
        )

    def device(self, name: str | None = None) -> HeadDevice:
        """The named volume, or the only one, for reading and writing."""
        if name is None and len(self._heads) == 1:
            return next(iter(self._heads.values()))
        try:
            return self._heads[name or ""]
        except KeyError:
            raise NotFound(
                f"branch '{self.branch.name}' has no volume '{name}'; "
                f"it has: {', '.join(sorted(self._heads)) or 'none'}",
                kind="no-volume",
            ) from None

    def create_volume(self, name: str, size: int) -> HeadDevice:
        """Add an empty volume of ``size`` bytes to the branch."""
        if name in self._heads:
            raise Conflict(f"branch '{self.branch.name}' has a volume '{name}' already")
        volume = Volume.checked(name, size, ZERO_ID)
        with self._commit_lock:
            self._change_volumes([*self.checkpoint(), volume], "add", name)
            self._heads[name] = HeadDevice(self, name, size, ZERO_ID, Overlay())
            return self._heads[name]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let everybody who begins to write wait until the end of the block.

        A snapshot taken inside of it has no write that began in it; reads and flushes go on.
        """
        self._open_gate.clear()
        try:
            yield
        finally:
            self._open_gate.set()

    def _change_volumes(self, volumes: Sequence[Volume], action: str, name: str) -> None:
        ordered = tuple(sorted(volumes))
        with self.vault.transaction() as transaction:
            transaction.add(
                events.VolumeChanged(
                    branch=self.branch.id, volumes=ordered, action=action, volume=name
                )
            )

    # -- taking writes: called by the devices ----------------------------------------------------

    def make_room(self) -> None:
        """Wait while too much is pending; a commit that fails says so to the writer."""
        if not self._open_gate.is_set():
            self._open_gate.wait()
        while self.pending_bytes >= self.limit:
            self.commit(barrier=False)

    def took(self, count: int) -> None:
        """Count what was just appended to ``pending``; called under the mutex."""
        self._taken += 1
        self.unstored[0] = 1
        self.pending_bytes += count
        if self.pending_bytes >= COMMIT_BYTES and self._background is None:
            self._background = threading.Thread(target=self._commit_behind, name="commit")
            self._background.start()

    def _commit_behind(self) -> None:
        try:
            self.commit(barrier=False)
        except Exception:
            # What failed is pending again: the next write that needs room, or the next flush,
            # tries again and tells its caller.
            pass
        finally:
            self._background = None

    # -- committing ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Make every write that returned before this call durable, with a barrier behind it."""
        wanted = self._taken
        with self._commit_lock:
            if self._durable < wanted or self._barrier_due:
                self.commit(barrier=True)

    def commit(self, *, barrier: bool) -> None:
        """Store what is pending now, in transactions of bounded size; the last has the barrier."""
        with self._commit_lock:
            with self.mutex:
                left, taken = len(self.pending), self._taken
            while True:
                left -= self._commit_some(left, barrier)
                if not left:
                    break
            self._durable = taken

    def _commit_some(self, left: int, barrier: bool) -> int:
        """Store the first of the ``left`` pending writes in one transaction; return how many."""
        with self.mutex:
            count, size = _some(self.pending, left)
            batch = self.pending[:count]
            del self.pending[:count]
        try:
            self._store(batch, barrier and count == left)
        except BaseException:
            with self.mutex:
                self.pending[:0] = batch
            raise
        with self.mutex:
            self.pending_bytes -= size
            self.unstored[0] = 1 if self.pending else 0
        ended = barrier and count == left
        self._barrier_due = not ended and (self._barrier_due or bool(batch))
        if sum(len(head.overlay) for head in self._heads.values()) >= CHECKPOINT_BLOCKS:
            self._checkpoint_now()
        return count

    def _store(self, batch: Sequence[Pending], barrier: bool) -> None:
        if not batch and not (barrier and self._barrier_due):
            return
        with self.vault.guard():
            rows, settled, frames = self._prepare(batch)
            if barrier:
                rows.append((events.BARRIER, rows[-1][1] if rows else 0, self.branch.id))
            with self.vault.transaction() as transaction:
                transaction.add_frames(frames)
                transaction.add_rows(rows, batch[0][0] if batch else events.now_us())
        for settle, arguments in settled:
            settle(*arguments)

    def _prepare(
        self, batch: Sequence[Pending]
    ) -> tuple[
        list[tuple[Any, ...]], list[tuple[Callable[..., None], tuple[Any, ...]]], list[Frame]
    ]:
        """Hash and pack a batch: its rows, how its devices settle it, and its frames."""
        rows: list[events.Row] = []
        settled: list[Settling] = []
        new: dict[bytes, bytes] = {}
        branch, size = self.branch.id, self.vault.options.block_size
        zero = bytes(size)
        start = batch[0][0] if batch else 0
        delta = 0
        for time_us, head, offset, length, what in batch:
            delta = max(delta, time_us - start)
            first = offset // size
            if isinstance(what[0], int):
                count = -(-length // size)
                rows.append((what[0], delta, branch, head.name, offset, length))
                settled.append((head.settle_clear, (first, count, what[1])))
                continue
            ids = [object_id(block) if block != zero else ZERO_ID for block in what]
            new.update(zip(ids, what, strict=True))
            joined = b"".join(ids)
            rows.append((events.WROTE, delta, branch, head.name, offset, length, joined))
            settled.append((head.settle_write, (first, what, joined)))
        new.pop(ZERO_ID, None)
        objects = self.vault.new_objects()
        objects.add_blocks(list(new), list(new.values()))
        return rows, settled, objects.finish()

    # -- checkpoints and snapshots ---------------------------------------------------------------

    def checkpoint(self) -> list[Volume]:
        """Make all writes durable and fold them: the branch's volumes as plain trees."""
        with self._commit_lock:
            self.flush()
            if any(len(head.overlay) for head in self._heads.values()):
                self._checkpoint_now()
            return list(self.volumes)

    def _checkpoint_now(self) -> None:
        with self.vault.guard():
            volumes, frames = self._folded()
            with self.vault.transaction() as transaction:
                transaction.add_frames(frames)
                transaction.add(events.Checkpointed(branch=self.branch.id, volumes=volumes))
        self._rebase(volumes)

    def _folded(self) -> tuple[tuple[Volume, ...], list[Frame]]:
        """The volumes with their overlays folded in, and the frames of the new tree nodes."""
        objects = self.vault.new_objects()
        volumes = tuple(
            Volume(
                name,
                head.size,
                head.overlay.fold(self.vault.objects, objects, head.tree.root, head.tree.height),
            )
            for name, head in sorted(self._heads.items())
        )
        return volumes, objects.finish()

    def _rebase(self, volumes: Sequence[Volume]) -> None:
        for volume in volumes:
            self._heads[volume.name].rebase(volume.root)

    def snapshot(
        self,
        message: str = "",
        *,
        author: str | None = None,
        attachments: Sequence[Volume] = (),
        frames: Sequence[Frame] = (),
    ) -> Snapshot:
        """Flush, and make the state of this moment an immutable version of the branch."""
        with self._commit_lock, self.vault.guard():
            self.flush()
            volumes, nodes = self._folded()
            made = snapshots.record(
                self.vault,
                self.branch.id,
                volumes,
                lambda branch, snapshot: events.Snapshotted(
                    branch=branch, volumes=volumes, snapshot=snapshot
                ),
                message=message,
                author=author,
                attachments=attachments,
                frames=[*frames, *nodes],
            )
            self._rebase(volumes)
            return made

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush and give the branch back; the lease goes even when the flush fails."""
        try:
            self.flush()
        finally:
            background = self._background
            if background is not None:
                background.join()
            self._lease.release()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
