"""Sessions: flush, commit, checkpoint, snapshot; what failure leaves, and who may write."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import blockvault.behind
import blockvault.committer
import blockvault.folding
import blockvault.pending
from blockvault import Vault
from blockvault.errors import Busy, Conflict, IOFailed, NoSpace, NotFound
from blockvault.ids import object_id
from blockvault.model import events, tree
from blockvault.pipeline import Meanwhile, Step
from blockvault.session import Session
from blockvault.store import env, tables
from blockvault.store.frames import decode
from blockvault.store.gathering import ObjectWriter
from blockvault.store.objects import ObjectReader
from blockvault.store.shared import HEAD
from blockvault.transaction import Transaction
from blockvault.vault import DIRECTORY
from tests.oracle import BLOCK, Disk, noise, whole

SIZE = 64 * BLOCK


@pytest.fixture
def session(vault: Vault) -> Iterator[Session]:
    with vault.session() as held:
        held.create_volume("vda", SIZE)
        yield held


def kinds(vault: Vault, since: int = 1) -> list[str]:
    return [type(logged.event).__name__ for logged in vault.events(since=since)]


def crash(session: Session) -> None:
    """The end of a process: what is in memory is lost, the kernel takes the lease back."""
    session._lease.release()


class FullDisk:
    """Commits fail while ``full``; like a disk, only after everything was handed over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.refused = 0
        finish = Transaction.finish

        def limited(transaction: Transaction) -> None:
            finish(transaction)
            if self.full:
                self.refused += 1
                raise NoSpace("the disk is full")

        monkeypatch.setattr(Transaction, "finish", limited)


@pytest.fixture
def disk_space(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(monkeypatch)


# -- what is recorded, and when ------------------------------------------------------------------


def test_events_of_a_flush_in_the_order_of_the_writes(vault: Vault, session: Session) -> None:
    head, start = session.device(), vault.branch().seq + 1
    head.write(5, b"first")
    head.zero(BLOCK, BLOCK + 10)
    head.trim(8 * BLOCK, 2 * BLOCK)
    head.write(5, b"second")
    assert vault.branch().seq == start - 1, "nothing is recorded before the flush"
    session.flush()
    recorded = [
        (type(logged.event).__name__, getattr(logged.event, "offset", -1),
         getattr(logged.event, "length", -1))
        for logged in vault.events(since=start)
    ]  # fmt: skip
    assert recorded == [
        ("Wrote", 5, 5),
        ("Wrote", 2 * BLOCK, 10),
        ("Zeroed", BLOCK, BLOCK),
        ("Trimmed", 8 * BLOCK, 2 * BLOCK),
        ("Wrote", 5, 6),
        ("Barrier", -1, -1),
    ]


def test_a_flush_of_nothing_records_nothing(vault: Vault, session: Session) -> None:
    session.device().write(0, b"x")
    session.flush()
    before = vault.branch().seq
    session.flush()
    session.checkpoint()
    assert kinds(vault, before + 1) == ["Checkpointed"]
    session.checkpoint()
    session.flush()
    assert kinds(vault, before + 1) == ["Checkpointed"]


def test_a_commit_without_barrier_gets_one_with_the_next_flush(
    vault: Vault, session: Session
) -> None:
    before = vault.branch().seq
    session.device().write(0, b"x")
    session.commit(barrier=False)
    session.flush()
    session.flush()
    assert kinds(vault, before + 1) == ["Wrote", "Barrier"]


def test_flushes_that_wait_share_a_barrier(
    vault: Vault, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, store, go = vault.branch().seq, session._pipeline._store, threading.Event()

    def slow(step: Step, meanwhile: Meanwhile) -> None:
        go.wait()
        store(step, meanwhile)

    monkeypatch.setattr(session._pipeline, "_store", slow)
    threads = []
    for number in range(8):
        session.device().write(number * BLOCK, b"x")
        threads.append(threading.Thread(target=session.flush))
        threads[-1].start()
    go.set()
    for thread in threads:
        thread.join()
    recorded = kinds(vault, before + 1)
    assert recorded.count("Wrote") == 8
    assert 1 <= recorded.count("Barrier") <= 2


def test_memory_is_bounded(vault: Vault, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers wait for the store when too much is pending; the background commits before that."""
    monkeypatch.setattr(blockvault.behind, "COMMIT_BYTES", 4 * BLOCK)
    session.limit = 8 * BLOCK
    disk = Disk(SIZE, session.device())
    for number in range(200):
        disk.write(number % 64 * BLOCK, noise(number, 2 * BLOCK if number % 64 < 63 else 5))
        assert session.pending_bytes <= 8 * BLOCK + 2 * BLOCK
        assert len(session.device().dirty) <= 2 * 8 + 2
    assert whole(session.device()) == disk.data
    session.flush()
    assert (session.pending_bytes, session.device().dirty) == (0, {})


def test_blocks_of_a_commit_are_stored_as_they_lie_on_the_disk(
    vault: Vault, session: Session
) -> None:
    """And each version of a block: only the events say which came last."""
    session.create_volume("vdb", SIZE)
    writes = {("vda", 7): 1, ("vdb", 2): 2, ("vda", 3): 3, ("vdb", 1): 4, ("vda", 8): 5}
    with vault.read() as reader:
        before = reader.newest_frame()
    session.device("vda").write(3 * BLOCK, noise(6, BLOCK))
    for (volume, number), seed in writes.items():
        session.device(volume).write(number * BLOCK, noise(seed, BLOCK))
    session.device("vda").write(4 * BLOCK, noise(7, BLOCK) + noise(8, BLOCK))
    session.flush()
    with vault.read() as reader:
        frames = [decode(data) for _, data in reader.frames(before + 1)]
    stored = [block for frame in frames if frame.uniform == BLOCK for block in frame]
    assert stored == [noise(seed, BLOCK) for seed in (6, 3, 7, 8, 1, 5, 4, 2)]
    for (volume, number), seed in writes.items():
        assert session.device(volume).read(number * BLOCK, BLOCK) == noise(seed, BLOCK)


LEAF = tree.FANOUT * BLOCK


def known_runs(vault: Vault, root: bytes) -> set[int]:
    """Which of a small volume's leaves have the hash of their run in the vault; it has to fit."""
    device = vault.device("main", "vda")
    leaves = list(tree.leaves(vault.objects, root, height=2))
    with vault.read() as reader:
        found = {first: reader.get(tables.RUNS, object_id(leaf)) for first, leaf in leaves}
    known = {first: digest for first, digest in found.items() if digest is not None}
    for first, digest in known.items():
        assert digest == object_id(device.read(first * BLOCK, LEAF))
    return {first // tree.FANOUT for first in known}


@pytest.mark.parametrize("fold", ["checkpoint", "snapshot"])
def test_leaves_that_are_written_whole_are_proved_by_one_hash(vault: Vault, fold: str) -> None:
    """Unless a part of them was written again by the time of the fold."""
    with vault.session() as session:
        disk = Disk(8 * LEAF, session.create_volume("vda", 8 * LEAF))
        disk.write(0, noise(1, BLOCK))  # leaf 0: a part only
        disk.write(LEAF - BLOCK, noise(2, LEAF + 2 * BLOCK))  # 1: whole, its neighbours not
        for number in range(32):  # 3: block by block, backward
            disk.write(4 * LEAF - (number + 1) * BLOCK, noise(number, BLOCK))
        disk.write(4 * LEAF, noise(4, LEAF))  # 4: a part once more, in the same batch
        disk.write(4 * LEAF + 5 * BLOCK, noise(5, BLOCK))
        disk.write(5 * LEAF, noise(6, LEAF))  # 5: the same, in another one
        session.flush()
        disk.write(5 * LEAF + 5 * BLOCK, noise(7, BLOCK))
        disk.write(6 * LEAF, noise(8, LEAF - BLOCK) + bytes(BLOCK))  # 6: with zeros
        disk.write(7 * LEAF, bytes(LEAF))  # 7: nothing else
        getattr(session, fold)()
        assert known_runs(vault, session.volumes[0].root) == {1, 3, 6}
        assert whole(session.device()) == disk.data
        disk.write(LEAF, noise(9, BLOCK))
        disk.write(6 * LEAF, noise(10, 2 * LEAF))
        getattr(session, fold)()
        assert known_runs(vault, session.volumes[0].root) == {3, 6, 7}
        assert whole(session.device()) == disk.data


def test_a_block_twice_does_not_stand_for_one_that_is_missing(vault: Vault) -> None:
    with vault.session() as session:
        disk = Disk(2 * LEAF, session.create_volume("vda", 2 * LEAF))
        for number in (*range(5), 4, *range(6, 32)):
            disk.write(number * BLOCK, noise(number, BLOCK))
        disk.write(LEAF, noise(99, LEAF))
        session.checkpoint()
        assert known_runs(vault, session.volumes[0].root) == {1}
        assert whole(session.device()) == disk.data


@pytest.mark.parametrize("checkpoint", [4, 1000])
def test_what_the_batch_before_stores_is_not_stored_again(
    vault: Vault, session: Session, monkeypatch: pytest.MonkeyPatch, checkpoint: int
) -> None:
    """It is not in the tables yet when the next batch is looked up."""
    monkeypatch.setattr(blockvault.pending, "TRANSACTION_BYTES", 2 * BLOCK)
    monkeypatch.setattr(blockvault.folding, "CHECKPOINT_BLOCKS", checkpoint)
    with vault.read() as reader:
        before = reader.index_size()
    for number in range(30):
        session.device().write(number * BLOCK, noise(number % 3, BLOCK))
    session.flush()
    new = [noise(number, BLOCK) for number in range(3)]
    with vault.read() as reader:
        frames = [data for _, data in reader.frames()]
        nodes = reader.index_size() - before - len(new)
    stored = [data for frame in frames for data in decode(frame)]
    assert [stored.count(block) for block in new] == [1, 1, 1]
    assert len(stored) == len(set(stored))
    assert (nodes > 0) == (checkpoint < 30)


def test_unstored_tells_whether_a_crash_would_lose_anything(session: Session) -> None:
    assert not session.unstored[0]
    session.device().write(0, b"x")
    assert session.unstored[0]
    session.commit(barrier=False)
    assert not session.unstored[0]


def test_times_of_events_never_lie_in_the_future(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another branch committed while writes were pending: they keep their times if they can."""
    clock = [events.now_us() + 1_000_000]
    monkeypatch.setattr(events, "now_us", lambda: clock[0])
    vault.create_branch("other")
    with vault.session() as session, vault.session("other") as other:
        head = session.create_volume("v", SIZE)
        other.create_volume("v", SIZE)
        start = clock[0]
        for number in range(10):
            head.write(number * BLOCK, b"x")
            clock[0] += 1_000_000
        other.device().write(0, b"y")
        other.flush()
        clock[0] += 1_000_000
        head.write(20 * BLOCK, b"z")
        session.flush()
        times = [logged.time_us for logged in vault.events("main")]
        assert times == sorted(times)
        assert times[-1] == clock[0] == start + 11_000_000
        clock[0] += 1
        assert vault.resolve("main@{now}").seq == vault.branch("main").seq


# -- checkpoints ---------------------------------------------------------------------------------


def test_checkpoints_bound_what_a_reader_replays(
    vault: Vault, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockvault.folding, "CHECKPOINT_BLOCKS", 10)
    disk = Disk(SIZE, session.device())
    for number in range(60):
        disk.write(number * 7 % 64 * BLOCK, noise(number, BLOCK))
        session.flush()
        assert len(session.device().overlay) < 10
        assert whole(session.device()) == disk.data
    assert kinds(vault).count("Checkpointed") == 6
    assert vault.open_volume("main").read() == disk.data


@pytest.mark.parametrize(("written", "folded"), [(9, False), (10, True)])
def test_a_session_that_ends_leaves_little_to_replay(
    vault: Vault, written: int, folded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockvault.folding, "LEFT_OVER_BLOCKS", 10)
    with vault.session("main", holder="the first") as session:
        disk = Disk(SIZE, session.create_volume("vda", SIZE))
        for number in range(written):
            disk.write(number * BLOCK, noise(number, BLOCK))
    assert (kinds(vault)[-1] == "Checkpointed") is folded
    with vault.session("main", holder="the next") as session:
        assert len(session.device().overlay) == (0 if folded else written)
        assert whole(session.device()) == disk.data


def test_a_session_that_cannot_leave_a_checkpoint_ends_all_the_same(
    vault: Vault, disk_space: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockvault.folding, "LEFT_OVER_BLOCKS", 1)
    session = vault.session("main", holder="the first")
    disk = Disk(SIZE, session.create_volume("vda", SIZE))
    disk.write(0, noise(1, 3 * BLOCK))
    session.flush()
    disk_space.full = True
    session.close()
    disk_space.full = False
    assert kinds(vault)[-1] == "Barrier"
    with vault.session("main", holder="the next") as session:
        assert whole(session.device()) == disk.data


def test_a_fold_begins_with_the_nodes_of_the_last_one(
    vault: Vault, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(SIZE, session.device())
    for turn in range(3):
        for number in range(64):
            disk.write(number * BLOCK, noise(turn + number, BLOCK))
        session.flush()
        vault.objects._hot.clear()
        vault.objects._cache.clear()
        if turn:
            monkeypatch.setattr(ObjectReader, "_found_many", lambda *_: pytest.fail("it was read"))
            monkeypatch.setattr(ObjectReader, "_found", lambda *_: pytest.fail("it was read"))
        session.checkpoint()
        monkeypatch.undo()
        assert whole(session.device()) == disk.data
    assert vault.open_volume("main").read() == disk.data


def test_a_storm_of_trims_is_committed_in_parts(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trim takes no memory for data, but each of its blocks is an entry to settle and replay."""
    run, most = 1000, 0
    replayed = 0
    with vault.session() as session:
        head = session.create_volume("big", 200 * run * BLOCK)
        for number in range(100):
            head.trim(number * run * BLOCK, run * BLOCK)
            most = max(most, len(head.dirty))
        session.flush()
        start = vault.branch().seq
    for logged in vault.events("main", until=start):
        code = type(logged.event).__name__
        replayed = (
            replayed + run if code == "Trimmed" else 0 if code == "Checkpointed" else replayed
        )
        assert replayed <= 65536
    assert most <= 2 * blockvault.committer.PENDING_BYTES // BLOCK + run


def test_nodes_are_stored_ahead_of_their_checkpoint(
    vault: Vault, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In commits of bounded size, none of them twice; only the last one has the event."""
    monkeypatch.setattr(blockvault.folding, "NODES_AT_ONCE", 3)
    monkeypatch.setattr(vault, "new_objects", lambda **_: ObjectWriter(vault.store, 2 << 10))
    size = 512 * BLOCK
    disk = Disk(size, session.create_volume("large", size))
    for number in range(0, 512, 32):
        disk.write(number * BLOCK, noise(number, BLOCK))
    session.flush()
    before = vault.branch().seq
    with vault.read() as reader:
        commit = reader.txn_id
    session.checkpoint()
    assert kinds(vault, before + 1) == ["Checkpointed"]
    with vault.read() as reader:
        assert reader.txn_id > commit + 1
        frames = [data for _, data in reader.frames()]
    stored = [data for frame in frames for data in decode(frame)]
    assert len(stored) == len(set(stored))
    assert whole(session.device("large")) == disk.data


def test_leaves_bound_checkpoints_too(
    vault: Vault, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scattered writes cost a leaf each, neighbours share one."""
    monkeypatch.setattr(blockvault.folding, "CHECKPOINT_LEAVES", 3)
    device = session.create_volume("large", 512 * BLOCK)
    before = vault.branch().seq
    for number in range(20):
        device.write(number * BLOCK, noise(number, BLOCK))
        session.commit(barrier=False)
    assert "Checkpointed" not in kinds(vault, before + 1)
    for number in (40, 70):
        device.write(number * BLOCK, noise(number, BLOCK))
        session.commit(barrier=False)
    assert kinds(vault, before + 1)[-1] == "Checkpointed"


def test_volumes_share_the_limit_of_a_checkpoint(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockvault.folding, "CHECKPOINT_BLOCKS", 10)
    other = session.create_volume("vdb", SIZE)
    for number in range(5):
        session.device("vda").write(number * BLOCK, b"x")
        other.write(number * BLOCK, b"x")
    session.flush()
    assert not len(other.overlay)
    assert not len(session.device("vda").overlay)


# -- a full disk ---------------------------------------------------------------------------------


def test_a_failed_commit_loses_nothing(
    vault: Vault, session: Session, disk_space: FullDisk
) -> None:
    disk = Disk(SIZE, session.device())
    disk.write(0, noise(1, 3 * BLOCK))
    session.flush()
    before = vault.branch().seq
    disk_space.full = True
    disk.write(BLOCK, noise(2, 100))
    for _ in range(3):
        with pytest.raises(NoSpace):
            session.flush()
        assert whole(session.device()) == disk.data
        assert vault.branch().seq == before
        assert session.unstored[0]
    disk.trim(2 * BLOCK, BLOCK)
    disk.write(BLOCK + 50, noise(3, 100))
    with pytest.raises(NoSpace):
        session.snapshot()
    assert whole(session.device()) == disk.data
    disk_space.full = False
    session.flush()
    assert kinds(vault, before + 1) == ["Wrote", "Trimmed", "Wrote", "Barrier"]
    assert (session.pending_bytes, session.device().dirty) == (0, {})
    assert vault.open_volume("main").read() == disk.data


def test_a_failed_long_zero_is_done_by_the_next_flush(vault: Vault, disk_space: FullDisk) -> None:
    size = 2000 * BLOCK
    with vault.session() as session:
        head = session.create_volume("v", size)
        head.write(BLOCK, noise(1, BLOCK))
        session.flush()
        disk_space.full = True
        with pytest.raises(NoSpace):
            head.zero(0, size)
        with pytest.raises(NoSpace):
            head.write(BLOCK + 5, b"parts of blocks wait for it")
        head.write(3 * BLOCK, noise(3, BLOCK))
        disk_space.full = False
        head.write(BLOCK + 5, b"now")
        session.flush()
        expected = bytearray(size)
        expected[3 * BLOCK : 4 * BLOCK] = noise(3, BLOCK)
        expected[BLOCK + 5 : BLOCK + 8] = b"now"
        assert whole(head) == expected
    assert vault.open_volume("main").read() == expected


def test_a_failed_checkpoint_leaves_the_overlay(
    vault: Vault, session: Session, disk_space: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(SIZE, session.device())
    disk.write(0, noise(1, 9 * BLOCK))
    session.flush()
    seq = vault.branch().seq
    disk_space.full = True
    with pytest.raises(NoSpace):
        session.checkpoint()
    with pytest.raises(NoSpace):
        session.snapshot()
    with pytest.raises(NoSpace):
        session.create_volume("vdb", SIZE)
    assert whole(session.device()) == disk.data
    assert (vault.branch().seq, [v.name for v in session.volumes]) == (seq, ["vda"])
    disk_space.full = False
    made = session.snapshot("now there is room")
    assert vault.open_volume(made.id.hex()).read() == disk.data


def test_writers_hear_of_a_full_disk_when_memory_is_full_too(
    session: Session, disk_space: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockvault.behind, "COMMIT_BYTES", 4 * BLOCK)
    session.limit = 8 * BLOCK
    disk_space.full = True
    disk, taken = Disk(SIZE), []

    def fill() -> None:
        for number in range(64):
            session.device().write(number * BLOCK, noise(number, BLOCK))
            disk.write(number * BLOCK, noise(number, BLOCK))
            taken.append(number)

    with pytest.raises(NoSpace):
        fill()
    assert taken == list(range(8)), "what was acknowledged fits into memory"
    assert whole(session.device()) == disk.data
    disk_space.full = False
    session.flush()
    assert whole(session.device()) == disk.data


def test_a_close_that_fails_gives_the_branch_back(
    vault: Vault, session: Session, disk_space: FullDisk
) -> None:
    session.flush()
    vault.create_branch("other")
    other = vault.session("other")
    other.device().write(0, b"lost with the process")
    disk_space.full = True
    with pytest.raises(NoSpace):
        other.close()
    disk_space.full = False
    with vault.session("other") as again:
        assert again.device().read(0, 4) == bytes(4)
        before = vault.branch("other").seq
        with pytest.raises(IOFailed):
            other.flush()
        other.close()
        assert vault.branch("other").seq == before, "what was lost stays lost"


@pytest.mark.parametrize(
    "act",
    [
        lambda old: old.device().write(10, b"x"),
        lambda old: old.device().zero(10, BLOCK),
        lambda old: old.device().trim(0, BLOCK),
        lambda old: old.device().flush(),
        Session.flush,
        Session.checkpoint,
        Session.snapshot,
        lambda old: old.create_volume("vdb", SIZE),
        lambda old: old.commit(barrier=True),
    ],
)
def test_a_closed_session_takes_and_records_nothing(
    vault: Vault, act: Callable[[Session], object]
) -> None:
    with vault.session() as old:
        old.create_volume("vda", SIZE)
        old.device().write(0, b"old")
    with vault.session() as new:
        new.device().write(0, b"new")
        new.flush()
        before = vault.branch().seq
        with pytest.raises(IOFailed) as refused:
            act(old)
        assert refused.value.reason == "closed"
        old.close()
        assert old.device().read(0, 3) == b"old"
        assert vault.branch().seq == before


# -- crashes and reopening -----------------------------------------------------------------------


def test_events_without_barrier_count_but_are_no_point_of_their_own(vault: Vault) -> None:
    session = vault.session()
    session.create_volume("v", SIZE)
    session.device().write(0, b"one")
    session.flush()
    point = vault.branch().seq
    session.device().write(0, b"two")
    session.commit(barrier=False)
    session.device().write(0, b"six")
    crash(session)
    last = vault.branch().seq
    assert vault.open_volume("main").read(3) == b"two"
    assert vault.resolve(f"main@{{#{last}}}").seq == point
    with vault.session() as again:
        assert again.device().read(0, 3) == b"two"
        again.flush()
        assert kinds(vault, last + 1) == ["Barrier"]
        assert vault.resolve(f"main@{{#{last + 1}}}").seq == last + 1


def test_a_snapshot_is_one_moment_of_all_volumes(vault: Vault, session: Session) -> None:
    a, b = session.device("vda"), session.create_volume("vdb", SIZE)
    stop, states = threading.Event(), []

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            a.write(number % 64 * BLOCK, number.to_bytes(8))
            b.write(number % 64 * BLOCK, number.to_bytes(8))

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(6):
        states.append(session.snapshot().id.hex())
    stop.set()
    writer.join()
    for state in states:
        first, second = (vault.open_volume(state, name).read() for name in ("vda", "vdb"))
        newest = [max(int.from_bytes(data[at : at + 8]) for at in range(0, SIZE, BLOCK))
                  for data in (first, second)]  # fmt: skip
        assert newest[0] - newest[1] in (0, 1)
        for data, last in zip((first, second), newest, strict=True):
            numbers = [int.from_bytes(data[at : at + 8]) for at in range(0, SIZE, BLOCK)]
            assert [n for n in numbers if n] == [
                n for n in (last - (last - at) % 64 for at in range(64)) if n > 0
            ]


def test_held_keeps_new_writes_out(session: Session) -> None:
    head, began = session.device(), threading.Event()

    def write() -> None:
        began.set()
        head.write(0, b"late")

    with session.held():
        writer = threading.Thread(target=write)
        writer.start()
        began.wait()
        writer.join(0.1)
        assert writer.is_alive()
        session.flush()
        assert head.read(0, 4) == bytes(4)
    writer.join()
    assert head.read(0, 4) == b"late"


# -- volumes and branches ------------------------------------------------------------------------


def test_volumes_by_name(session: Session) -> None:
    assert session.device() is session.device("vda")
    session.create_volume("vdb", 5)
    assert [(v.name, v.size) for v in session.volumes] == [("vda", SIZE), ("vdb", 5)]
    for name in (None, "vdc"):
        with pytest.raises(NotFound, match="it has: vda, vdb"):
            session.device(name)
    with pytest.raises(Conflict):
        session.create_volume("vda", 5)


def test_a_new_volume_keeps_what_was_written_before(vault: Vault, session: Session) -> None:
    session.device().write(0, b"before")
    session.create_volume("vdb", SIZE).write(1, b"after")
    assert session.device("vda").read(0, 6) == b"before"
    session.flush()
    assert vault.open_volume("main", "vda").read(6) == b"before"
    assert vault.open_volume("main", "vdb").read(6) == b"\0after"


def test_one_writer_for_each_branch(vault: Vault, session: Session) -> None:
    for call in (vault.session, vault.snapshot, lambda: vault.rollback("main", "main")):
        with pytest.raises(Busy, match="branch 'main' is being written by a session"):
            call()
    vault.create_branch("other")
    with vault.session("other") as other:
        other.device().write(0, b"other")
        session.device().write(0, b"main")
    session.flush()
    assert vault.open_volume("main").read(5) == b"main\0"
    assert vault.open_volume("other").read(5) == b"other"


def test_a_branch_that_took_the_name_of_another_is_not_written(vault: Vault) -> None:
    """Between the look at a name and its lease, the name may have gone to another branch."""
    vault.create_branch("x")
    stale = vault.branch("x")
    vault.delete_branch("x")
    vault.create_branch("x")
    with pytest.raises(Busy, match="replaced"):
        Session(vault, stale, "a test")
    with vault.session("x") as session:
        assert session.branch.id != stale.id


def test_none_begins_where_nothing_can_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it was opened somebody wrote, and took too long: here it is read-only for good."""
    Vault.create(tmp_path).close()
    writer = os.open(tmp_path / DIRECTORY / HEAD, os.O_RDWR)
    fcntl.flock(writer, fcntl.LOCK_EX)
    with monkeypatch.context() as patch:
        patch.setattr(env, "OPEN_WAIT", 0)
        vault = Vault.open(tmp_path)
    os.close(writer)
    for _ in range(2):
        with pytest.raises(Busy, match="open it again to write") as refused:
            vault.session()
        assert refused.value.reason == "write-locked", "and the lease is free again"
    assert [branch.name for branch in vault.branches()] == ["main"], "it can be read"
    vault.close()
    with Vault.open(tmp_path) as again, again.session() as session:
        session.create_volume("vda", SIZE)
