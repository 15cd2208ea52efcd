"""How the writes of a session become durable.

    device.write ─> pending (memory, bounded) ─ commit ─> frames + index + one log record, durable
                       └ sync ─> journal

Writes only take a short mutex and return.  ``commit`` takes everything pending, hashes and stores
it, and appends the events in one transaction; commits are serial, so the log keeps the order of the
writes.  ``flush`` is a commit that ends in a barrier, and flushes that wait for one another share
it.  ``sync``, what a guest's flush is, may promise the same by the journal and commit behind.  When
a commit fails (a full disk), its writes go back to the front of the pending ones: they stay
readable, and the next flush tries again.

``pending`` holds the writes, ``behind`` has them committed before somebody waits, ``pacing`` slows
writers down before they have to stop, ``pipeline`` and ``storing`` make rows and frames of them,
``journaling`` promises.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from typing import TYPE_CHECKING

from blockvault.behind import Behind
from blockvault.errors import IOFailed
from blockvault.journaling import Journaling
from blockvault.model import events
from blockvault.pacing import Pace
from blockvault.pending import Batch, Pending
from blockvault.pipeline import Meanwhile, Pipeline, Step
from blockvault.storing import Prepared

if TYPE_CHECKING:
    from blockvault.head import HeadDevice
    from blockvault.ops.refs import Branch
    from blockvault.store.gathering import ObjectWriter
    from blockvault.vault import Vault

PENDING_BYTES = 64 << 20
"""Pending bytes at which writers wait: the session's volatile cache."""


class Committer(ABC):
    """The half of a session that its devices see: it takes their writes and makes them durable."""

    def __init__(self, vault: Vault, branch: Branch) -> None:
        self.vault = vault
        self.branch = branch
        self.pending = Pending()
        self.limit = PENDING_BYTES
        self._commit_lock = threading.RLock()
        self._journaling = Journaling(vault, branch.id, self.pending)
        self._pipeline = Pipeline(self.pending, self._prepared, self._store, self._settled)
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
        self._ended = False

    @abstractmethod
    def _stored(self, objects: ObjectWriter) -> None:
        """A batch is in the tables; ``objects`` collects the blocks of the next one already."""

    def _recover(self, heads: dict[str, HeadDevice]) -> None:
        """Store what a session that was killed had promised by its journal."""
        self._barrier_due = self.branch.barrier_seq < self.branch.seq
        with self._behind.kept_off():
            if self._journaling.recover(heads):
                self.commit(barrier=False)
                self._journaling.end()
                self._journaling = Journaling(self.vault, self.branch.id, self.pending)
        self._promised = -1 if self._barrier_due else self.pending.stored

    def _end(self) -> None:
        """Nothing is taken any more; a journal that was not ended stays for the next session."""
        self._behind.end()
        with self._commit_lock:
            self._ended = True
        self._pipeline.close()
        self._journaling.abandon()

    def _check_open(self) -> None:
        """The branch is somebody else's by now: what they wrote would not be beneath ours."""
        if self._ended:
            raise IOFailed("the session has been closed", kind="closed")

    # -- taking writes: called by the devices ----------------------------------------------------

    @property
    def pending_bytes(self) -> int:
        """Bytes of writes that are not stored yet."""
        return self.pending.size

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

    def make_room(self, count: int) -> None:
        """Wait until ``count`` bytes more may be pending; from half of the limit on, a little for
        each write (``pacing``).  A commit that fails says so to the writer.
        """
        if not self._open_gate.is_set():
            self._open_gate.wait()
        self._check_open()
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

    # -- promising -------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make every write that returned before this call durable, with a barrier behind it.

        In the journal or in the tables; then readers of the vault see it a moment later.
        """
        self._check_open()
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
            self._check_open()
            if self.pending.stored < wanted or self._barrier_due:
                self.commit(barrier=True)

    # -- committing ------------------------------------------------------------------------------

    def commit(self, *, barrier: bool) -> None:
        """Store what is pending now, in transactions of bounded size; the last has the barrier."""
        with self._commit_lock:
            with self.pending.mutex:
                stop = self.pending.taken
            self._commit(stop, barrier=barrier)

    def _commit(self, stop: int, *, barrier: bool) -> None:
        with self._commit_lock, self.vault.guard():
            self._check_open()
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

    def _settled(self, step: Step) -> None:
        """A batch is no longer pending: what that promises, and how long it took."""
        with self.pending.mutex:
            if not self._barrier_due:
                self._promised = max(self._promised, step.batch.stop)
            if max(step.batch.stop, self._journaling.journaled) >= self.pending.taken:
                self.unstored[0] = 0
        self._pace.stored(step.batch.size)
        self._stored(step.objects)
