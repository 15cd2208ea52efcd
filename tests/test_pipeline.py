"""The pipeline: batches stored in order, the next prepared meanwhile, what fails given back."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, cast

import pytest

from blockvault import pending as pending_module
from blockvault.pending import Batch, Pending
from blockvault.pipeline import Meanwhile, Pipeline, Step
from blockvault.store.gathering import ObjectWriter
from blockvault.storing import Prepared

SIZE = 4096
OBJECTS = cast(ObjectWriter, None)


class Disk(NamedTuple):
    block_size: int = SIZE


class Rows:
    """Stands for what is prepared of a batch: the numbers of its entries."""

    def __init__(self, batch: Batch) -> None:
        self.numbers: list[Any] = [what[0][0] for *_, what in batch.entries]

    def end_with_barrier(self) -> None:
        self.numbers.append("barrier")


class Line:
    """A pipeline of one block a batch, and what became of them."""

    def __init__(self, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pending_module, "TRANSACTION_BYTES", SIZE)
        self.pending = Pending()
        for number in range(writes):
            self.write(number)
        self.stored: list[Any] = []
        self.prepared: list[Any] = []
        self.refuse: set[int] = set()
        self.fail_after = False
        self.begin_early = True
        self.threads: list[str] = []
        self.pipeline = Pipeline(
            self.pending, cast(Any, self.prepare), cast(Any, self.store), self.after
        )

    def write(self, number: int) -> None:
        self.pending.entries.append((0, cast(Any, Disk()), 0, SIZE, ((number,),)))
        self.pending.size += SIZE

    def prepare(self, batch: Batch, _: ObjectWriter) -> Rows:
        rows = Rows(batch)
        self.prepared += rows.numbers
        return rows

    def store(self, step: Step, meanwhile: Meanwhile) -> None:
        numbers = cast(Rows, step.prepared).numbers
        if self.begin_early:
            meanwhile()
        if self.refuse & set(numbers):
            raise OSError(28, "No space left on device")
        self.threads.append(threading.current_thread().name)
        self.stored += numbers

    def after(self, _: Step) -> None:
        if self.fail_after:
            raise OSError(28, "No space left on device")

    def run(self, *, barrier: bool = False) -> None:
        self.pipeline.run(self.pending.taken, OBJECTS, barrier=barrier)


def test_all_are_stored_in_order_and_the_last_has_the_barrier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line(5, monkeypatch)
    line.run(barrier=True)
    assert line.stored == [0, 1, 2, 3, 4, "barrier"]
    assert (line.pending.stored, line.pending.size, line.pending.entries) == (5, 0, [])
    line.pipeline.close()


def test_a_single_batch_stays_in_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(1, monkeypatch)
    line.run()
    assert line.threads == [threading.current_thread().name]


def test_the_next_is_prepared_when_the_disk_has_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line(2, monkeypatch)
    prepared = threading.Event()

    def store(step: Step, meanwhile: Meanwhile) -> None:
        first = cast(Rows, step.prepared).numbers == [0]
        assert prepared.is_set() is not first, "the second batch came too early"
        meanwhile()
        if first:
            assert prepared.wait(30), "the second batch waits for the first"
        line.store(step, lambda: None)

    def prepare(batch: Batch, objects: ObjectWriter) -> Prepared:
        rows = line.prepare(batch, objects)
        if rows.numbers == [1]:
            prepared.set()
        return cast(Prepared, rows)

    line.pipeline._store, line.pipeline._prepare = store, prepare
    line.run()
    assert line.stored == [0, 1]
    line.pipeline.close()


def test_writers_have_their_room_before_the_next_batch_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line(2, monkeypatch)

    def prepare(batch: Batch, objects: ObjectWriter) -> Prepared:
        if batch.first == 1:
            with line.pending.room:
                assert line.pending.room.wait_for(lambda: line.pending.stored == 1, 30)
        return cast(Prepared, line.prepare(batch, objects))

    line.pipeline._prepare = prepare
    line.run()
    assert line.stored == [0, 1]
    line.pipeline.close()


def test_without_another_thread_this_one_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only this one, though there is a thread again for the next batch."""
    line = Line(5, monkeypatch)
    refused, start = [], threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    line.run(barrier=True)
    assert refused == ["prepare_0"]
    assert line.prepared == [0, 1, 2, 3, 4]
    assert line.stored == [0, 1, 2, 3, 4, "barrier"]
    assert (line.pending.stored, line.pending.size, line.pending.entries) == (5, 0, [])
    line.pipeline.close()


def test_a_store_with_nothing_to_do_need_not_say_when(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(3, monkeypatch)
    line.begin_early = False
    line.run(barrier=True)
    assert line.stored == [0, 1, 2, "barrier"]


@pytest.mark.parametrize("begin_early", [True, False])
@pytest.mark.parametrize("refused", range(4))
def test_what_is_not_stored_goes_back_in_order(
    refused: int, begin_early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(4, monkeypatch)
    line.begin_early = begin_early
    line.refuse = {refused}
    with pytest.raises(OSError, match="No space"):
        line.run(barrier=True)
    assert line.stored == list(range(refused))
    assert [what[0][0] for *_, what in line.pending.entries] == list(range(refused, 4))
    assert (line.pending.base, line.pending.stored) == (refused, refused)
    assert line.pending.size == (4 - refused) * SIZE
    line.refuse = set()
    line.write(4)
    line.run(barrier=True)
    assert line.stored == [0, 1, 2, 3, 4, "barrier"]
    line.pipeline.close()


def test_barriers_go_back_with_their_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(0, monkeypatch)
    for number in range(3):
        line.write(number)
        line.pending.add_barrier(number)
    line.refuse = {1}
    with pytest.raises(OSError, match="No space"):
        line.run()
    taken = [line.pending.take(line.pending.taken) for _ in range(2)]
    assert [[barrier.at for barrier in batch.barriers] for batch in taken] == [[2], [3]]
    line.pipeline.close()


def test_a_batch_that_cannot_be_prepared_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(3, monkeypatch)

    def prepare(batch: Batch, objects: ObjectWriter) -> Prepared:
        if batch.first == 2:
            raise MemoryError
        return cast(Prepared, line.prepare(batch, objects))

    line.pipeline._prepare = prepare
    with pytest.raises(MemoryError):
        line.run()
    assert (line.stored, line.pending.stored, line.pending.base) == ([0, 1], 2, 2)
    line.pipeline.close()


def test_a_failure_behind_the_store_takes_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that finds no room: the writes before it are stored all the same."""
    line = Line(3, monkeypatch)
    line.fail_after = True
    with pytest.raises(OSError, match="No space"):
        line.run()
    assert line.stored[:1] == [0]
    assert line.pending.stored == len(line.stored)
    line.fail_after = False
    line.run()
    assert line.stored == [0, 1, 2]
    line.pipeline.close()
