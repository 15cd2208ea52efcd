"""A session: the writable head of one branch, held under a lease.

    device.write ─> pending (memory, bounded) ─ commit ─> frames + index + one log record, durable
                       └ sync ─> journal          └─> overlays; too many entries ─> checkpoint

Writes only take a short mutex and return.  ``commit`` takes everything pending, hashes and stores
it, and appends the events in one transaction; commits are serial, so the log keeps the order of the
writes.  ``flush`` is a commit that ends in a barrier, and flushes that wait for one another share
it.  ``sync``, what a guest's flush is, may promise the same by the journal and commit behind.  When
a commit fails (a full disk), its writes go back to the front of the pending ones: they stay
readable, and the next flush tries again.

A checkpoint folds the overlays into new tree roots, so that opening the branch never replays more
than a bounded number of blocks; a snapshot is a checkpoint that also has a name.

``pending`` holds the writes, ``behind`` has them committed before somebody waits, ``pacing`` slows
writers down before they have to stop, ``committing`` and ``storing`` make rows and frames of them,
``folding`` makes trees of what is stored, ``journaling`` promises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from mmap import mmap
from typing import TYPE_CHECKING

from blockvault.behind import Behind
from blockvault.committing import Meanwhile, Pipeline, Step
from blockvault.errors import Conflict, NotFound, VaultError
from blockvault.folding import Folding
from blockvault.head import HeadDevice
from blockvault.ids import ZERO_ID
from blockvault.journaling import Journaling
from blockvault.lease import Lease
from blockvault.model import events
from blockvault.model.overlay import Overlay
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import refs, resolve, snapshots, states
from blockvault.pacing import Pace
from blockvault.pending import Batch, Pending
from blockvault.store import residency
from blockvault.storing import Prepared

if TYPE_CHECKING:
    from blockvault.store.frames import Frame
    from blockvault.store.gathering import ObjectWriter
    from blockvault.vault import Vault

PENDING_BYTES = 64 << 20
"""Pending bytes at which writers wait: the session's volatile cache."""


class Session:
    """Opened by ``Vault.session``; close it, or use it in a ``with``, to flush and release."""

    def __init__(self, vault: Vault, branch: refs.Branch, holder: str) -> None:
        self.vault = vault
        self.branch = branch
        self.pending = Pending()
        self.limit = PENDING_BYTES
        self._commit_lock = threading.RLock()
        self._journaling = Journaling(vault, branch.id, self.pending)
        self._pipeline = Pipeline(self.pending, self._prepared, self._store, self._stored)
        self._pace = Pace()
        self._promised = 0
        """Entries that the last barrier covers, in the tables or in the journal."""
        self._barrier_due = False
        self._behind = Behind(
            self.pending,
            lambda: self._journaling.journaled,
            lambda stop: self._commit(stop, barrier=False),
        )
        self.unstored: bytearray | mmap = bytearray(1)
        """One byte, 1 while taken writes are in memory only.  Shared memory put in its place tells
        others, who outlive this process, whether its end lost anything."""
        self._open_gate = threading.Event()
        self._open_gate.set()
        self._lease = Lease(vault.path, branch.id, branch.name, holder)
        try:
            self._heads = self._open_heads()
            self._folding = Folding(vault, self._heads)
            self._recover()
        except BaseException:
            self._journaling.abandon()
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

    def _recover(self) -> None:
        """Store what a session that was killed had promised by its journal."""
        with self._behind.kept_off():
            if self._journaling.recover(self._heads):
                self.commit(barrier=False)
                self._journaling.end()
                self._journaling = Journaling(self.vault, self.branch.id, self.pending)
        self._promised = -1 if self._barrier_due else self.pending.stored

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

    @property
    def pending_bytes(self) -> int:
        """Bytes of writes that are not stored yet."""
        return self.pending.size

    def make_room(self, count: int) -> None:
        """Wait until ``count`` bytes more may be pending; from half of the limit on, a little for
        each write (``pacing``).  A commit that fails says so to the writer.
        """
        if not self._open_gate.is_set():
            self._open_gate.wait()
        held = self._pace.hold(count, self.pending.size, self.limit)
        if held:
            time.sleep(held)
        while self.pending.size >= self.limit:
            if not self._behind.relieved(self.limit):
                self.commit(barrier=False)

    def took(self, count: int) -> None:
        """Count what was just appended to ``pending``; called under its mutex."""
        self.unstored[0] = 1
        self.pending.size += count
        self._behind.took()

    # -- committing ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Make every write that returned before this call durable, with a barrier behind it.

        In the journal or in the tables; then readers of the vault see it a moment later.
        """
        with self.pending.mutex:
            wanted = self.pending.taken
        if self._promised >= wanted:
            return
        promised = self._journaling.promise()
        if promised < wanted:
            self.flush()
            return
        with self.pending.mutex:
            self._promised = max(self._promised, promised)
            if promised == self.pending.taken:
                self.unstored[0] = 0
            self._behind.begin()

    def ahead(self) -> None:
        """Do what the next ``sync`` would have to do, without promising anything."""
        self._journaling.ahead()

    @property
    def journaled(self) -> bool:
        """Whether ``sync`` uses the journal."""
        return self._journaling.in_use

    def flush(self) -> None:
        """``sync`` into the tables: every reader of the vault sees what was written."""
        with self.pending.mutex:
            wanted = self.pending.taken
        with self._commit_lock:
            if self.pending.stored < wanted or self._barrier_due:
                self.commit(barrier=True)

    def commit(self, *, barrier: bool) -> None:
        """Store what is pending now, in transactions of bounded size; the last has the barrier."""
        with self._commit_lock:
            with self.pending.mutex:
                stop = self.pending.taken
            self._commit(stop, barrier=barrier)

    def _commit(self, stop: int, *, barrier: bool) -> None:
        with self._commit_lock, self.vault.guard():
            self._pace.began()
            objects = self.vault.new_objects(sparing=True)
            self._pipeline.run(stop, objects, barrier=barrier)

    def _prepared(self, batch: Batch, objects: ObjectWriter) -> Prepared:
        return Prepared(batch, self.branch.id, self.vault.options.block_size, objects)

    def _store(self, step: Step, meanwhile: Meanwhile) -> None:
        """Make a batch durable, in one transaction."""
        batch, prepared, objects = step
        if not (batch.entries or batch.barriers or (prepared.rows and self._barrier_due)):
            return
        frames = objects.seal()
        with self.vault.transaction() as transaction:
            transaction.add_frames(frames)
            transaction.add_rows(prepared.rows, prepared.time_us or events.now_us())
            self._journaling.note(transaction.writer, batch.stop)
            meanwhile()
        objects.stored(frames, transaction.number)
        prepared.settle()
        self._barrier_due = not prepared.ends_with_barrier

    def _stored(self, step: Step) -> None:
        """A batch is in the tables: what that promises, and whether it is time to fold."""
        with self.pending.mutex:
            if not self._barrier_due:
                self._promised = max(self._promised, step.batch.stop)
            if max(step.batch.stop, self._journaling.journaled) >= self.pending.taken:
                self.unstored[0] = 0
        self._pace.stored(step.batch.size)
        if self._folding.due:
            self._checkpoint_now(step.objects)

    # -- checkpoints and snapshots ---------------------------------------------------------------

    def checkpoint(self) -> list[Volume]:
        """Make all writes durable and fold them: the branch's volumes as plain trees."""
        with self._commit_lock:
            self.flush()
            if self._folding.wanted:
                self._checkpoint_now()
            return list(self.volumes)

    def _checkpoint_now(self, beside: ObjectWriter | None = None) -> None:
        """Fold the overlays; ``beside`` collects blocks for the commit after this one."""
        with self.vault.guard():
            volumes, frames, runs = self._folding.fold(beside)
            with self.vault.transaction() as transaction:
                transaction.add_frames(frames)
                transaction.add_runs(runs)
                transaction.add(events.Checkpointed(branch=self.branch.id, volumes=volumes))
            if beside is not None:
                beside.passed(frames, transaction.number)
        self._folding.rebase(volumes)
        del frames
        residency.give_back_heap()

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
            volumes, nodes, runs = self._folding.fold()
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
                runs=runs,
            )
            self._folding.rebase(volumes)
            return made

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush and give the branch back; the lease goes even when the flush fails."""
        try:
            self.flush()
            self._journaling.end()
            if self._folding.due_at_the_end:
                # All is durable: a disk without room for this loses nothing.
                with suppress(VaultError):
                    self.checkpoint()
        finally:
            self._behind.end()
            self._pipeline.close()
            self._journaling.abandon()
            self._lease.release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
