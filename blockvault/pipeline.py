"""Pending writes on their way into the tables, batch by batch.

    pending ─ take ─> prepare: hash, look up, compress ─> store: one transaction ─> settle
                      another thread, from the second on     the caller's thread

The next batch is prepared while the one before is written to the disk, and only then: two threads
that both need the interpreter for each block hand it to and fro, and each takes twice as long.
Batches are stored one after another, in the order of the writes; when one cannot be stored, it goes
back to the pending writes, and with it the one behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from blockvault.pending import Batch, Pending
from blockvault.store.gathering import ObjectWriter
from blockvault.storing import Prepared

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Meanwhile = Callable[[], None]
"""Told that now is the time for what would have been in the way before."""


class Step(NamedTuple):
    """A prepared batch; its frames are taken from ``objects`` when it is stored."""

    batch: Batch
    prepared: Prepared
    objects: ObjectWriter


class Pipeline:
    """Takes pending writes and has them stored.  One thread at a time may ``run`` it.

    ``prepare`` makes a batch ready; ``store`` makes it durable, and calls its second argument when
    all that is left to do is the disk's; ``after`` is called when the batch is no longer pending.
    """

    def __init__(
        self,
        pending: Pending,
        prepare: Callable[[Batch, ObjectWriter], Prepared],
        store: Callable[[Step, Meanwhile], None],
        after: Callable[[Step], None],
    ) -> None:
        self._pending = pending
        self._prepare = prepare
        self._store = store
        self._after = after
        self._thread: ThreadPoolExecutor | None = None
        self._coming: Future[Step] | None = None
        self._under_way: list[Batch] = []

    def run(self, stop: int, objects: ObjectWriter, *, barrier: bool) -> None:
        """Store all entries before number ``stop``, with a barrier behind the last if asked."""

        def next_step() -> Step:
            batch = self._pending.take(stop)
            self._under_way.append(batch)
            step = Step(batch, self._prepare(batch, objects), objects)
            if barrier and batch.stop >= stop:
                step.prepared.end_with_barrier()
            return step

        def meanwhile() -> None:
            try:
                self._coming = self._other_thread().submit(next_step)
            except RuntimeError:
                # No thread can be had: this one does it when it has stored.  The queue, which has
                # it already, goes: there it would be done once more as soon as a thread begins.
                self.close()

        try:
            step = next_step()
            while step.batch.stop < stop:
                coming = self._stored(step, meanwhile)
                step = coming.result() if coming is not None else next_step()
            self._stored(step, lambda: None)
        except BaseException:
            self._unwind()
            raise

    def _stored(self, step: Step, meanwhile: Meanwhile) -> Future[Step] | None:
        """Store a step; return the one that was made ready, or failed, meanwhile.

        Writers have its room at once; what comes ``after`` is not done beside the next batch.
        """
        self._store(step, meanwhile)
        self._pending.done(step.batch)
        del self._under_way[0]
        coming = self._awaited()
        self._after(step)
        return coming

    def _awaited(self) -> Future[Step] | None:
        """What is coming, ready or failed, if anything is."""
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.exception()
        return coming

    def _unwind(self) -> None:
        """Give back what was taken and is not stored, the last first."""
        self._awaited()
        while self._under_way:
            self._pending.give_back(self._under_way.pop())

    def _other_thread(self) -> ThreadPoolExecutor:
        if self._thread is None:
            from concurrent.futures import ThreadPoolExecutor  # dear, and a snapshot needs none

            self._thread = ThreadPoolExecutor(1, "prepare")
        return self._thread

    def close(self) -> None:
        """End the other thread; nothing is being prepared any more."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
