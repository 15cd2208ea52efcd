"""Pending writes on their way into the tables, batch by batch.

    pending ─ take ─> prepare: hash, look up, compress ─> store: one transaction, then settle
                      the caller's thread                  another thread, if more is to come

So the next batch is prepared while the one before is written to the disk.  Batches are stored one
after another, in the order of the writes; when one cannot be stored, it goes back to the pending
writes, and with it the one behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from blockvault.pending import Batch, Pending
from blockvault.store.gathering import ObjectWriter
from blockvault.storing import Prepared


class Step(NamedTuple):
    """A prepared batch; its frames are taken from ``objects`` when it is stored."""

    batch: Batch
    prepared: Prepared
    objects: ObjectWriter


class Pipeline:
    """Takes pending writes and has them stored.  One thread at a time may ``run`` it.

    ``prepare`` makes a batch ready; ``store`` makes it durable; ``after`` is called, in the thread
    that stored it, when the batch is no longer pending.
    """

    def __init__(
        self,
        pending: Pending,
        prepare: Callable[[Batch, ObjectWriter], Prepared],
        store: Callable[[Step], None],
        after: Callable[[Step], None],
    ) -> None:
        self._pending = pending
        self._prepare = prepare
        self._store = store
        self._after = after
        self._thread: ThreadPoolExecutor | None = None
        self._storing: Future[None] | None = None
        self._under_way: list[Batch] = []

    def run(self, stop: int, objects: ObjectWriter, *, barrier: bool) -> None:
        """Store all entries before number ``stop``, with a barrier behind the last if asked."""
        more = True
        while more:
            batch = self._pending.take(stop)
            self._under_way.append(batch)
            more = batch.stop < stop
            try:
                step = Step(batch, self._prepare(batch, objects), objects)
                if barrier and not more:
                    step.prepared.end_with_barrier()
                self._join()
                if more:
                    self._storing = self._other_thread().submit(self._finish, step)
                else:
                    self._finish(step)
            except BaseException:
                self._unwind()
                raise

    def _finish(self, step: Step) -> None:
        self._store(step)
        self._pending.done(step.batch)
        del self._under_way[0]
        self._after(step)

    def _join(self) -> None:
        """Wait for the batch that is being stored; what failed there fails here."""
        storing, self._storing = self._storing, None
        if storing is not None:
            storing.result()

    def _unwind(self) -> None:
        """Give back what was taken and is not stored, the last first."""
        if self._storing is not None:
            self._storing.exception()
            self._storing = None
        while self._under_way:
            self._pending.give_back(self._under_way.pop())

    def _other_thread(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "store")
        return self._thread

    def close(self) -> None:
        """End the other thread; nothing is being stored any more."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
