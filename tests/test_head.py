"""The writable head: any alignment over any layer, and readers beside everything that moves."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import blockvault.behind
import blockvault.committer
import blockvault.folding
import blockvault.pending
from blockvault import Vault
from blockvault.errors import BadRequest, Damaged
from blockvault.head import HeadDevice
from blockvault.model.overlay import LONG_RUN, Overlay
from blockvault.pipeline import Meanwhile, Step
from blockvault.session import Session
from tests.oracle import BLOCK, Disk, check_device, noise, tight, whole

BLOCKS = 70
SIZE = BLOCKS * BLOCK + 700
POSITIONS = [0, 1, 511, 512, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 31 * BLOCK + 5,
             32 * BLOCK, 33 * BLOCK - 1, 64 * BLOCK, BLOCKS * BLOCK, SIZE - 1, SIZE]  # fmt: skip


@pytest.fixture
def session(vault: Vault) -> Iterator[Session]:
    with vault.session() as held:
        yield held


@pytest.fixture
def head(session: Session) -> HeadDevice:
    return session.create_volume("vda", SIZE)


def in_layers(session: Session, head: HeadDevice) -> Disk:
    """A disk with blocks in the tree, in the overlay and in memory, zeros over data among them."""
    disk = Disk(SIZE, head)
    disk.write(0, noise("tree", 40 * BLOCK))
    disk.write(60 * BLOCK, noise("tail", SIZE - 60 * BLOCK))
    session.checkpoint()
    disk.write(2 * BLOCK, noise("overlay", 6 * BLOCK))
    disk.zero(20 * BLOCK, 3 * BLOCK)
    disk.write(66 * BLOCK, noise("overlay", 100))
    session.flush()
    disk.write(4 * BLOCK, noise("dirty", 2 * BLOCK))
    disk.trim(30 * BLOCK, 3 * BLOCK)
    disk.write(SIZE - 10, b"dirty tail")
    assert head.dirty
    assert len(head.overlay)
    assert any(head.tree.root)
    return disk


@pytest.mark.parametrize("kind", ["write", "zero", "trim"])
def test_every_alignment_over_every_layer(session: Session, head: HeadDevice, kind: str) -> None:
    rng = random.Random(kind)
    disk = in_layers(session, head)
    for start in POSITIONS:
        for end in POSITIONS:
            if start > end:
                continue
            if kind == "write":
                disk.write(start, noise((start, end), end - start))
            else:
                getattr(disk, kind)(start, end - start)
            assert whole(head) == disk.data, (start, end)
        check_device(head, disk.data, rng)
        disk.write(0, noise(start, SIZE))
        if start % 2:
            session.flush()
    session.checkpoint()
    check_device(head, disk.data, rng)


@pytest.mark.parametrize(
    ("start", "end", "read"),
    [
        (0, 3 * BLOCK, []),
        (5, 3 * BLOCK, [0]),
        (0, 3 * BLOCK + 5, [3]),
        (5, 3 * BLOCK + 5, [0, 3]),
    ],
)
def test_only_the_edges_of_a_write_are_read(
    monkeypatch: pytest.MonkeyPatch, head: HeadDevice, start: int, end: int, read: list[int]
) -> None:
    asked, block = [], HeadDevice.block
    monkeypatch.setattr(
        HeadDevice, "block", lambda self, number: asked.append(number) or block(self, number)
    )
    head.write(start, noise("edges", end - start))
    assert asked == read


@settings(max_examples=40)
@given(data=st.data())
def test_small_writes_of_any_size(tmp_path_factory: Any, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 511, BLOCK - 1, BLOCK, BLOCK + 1, 33 * BLOCK + 3]))
    with Vault.create(tmp_path_factory.mktemp("small")) as vault, vault.session() as session:
        disk = Disk(size, session.create_volume("v", size))
        for number in range(data.draw(st.integers(1, 12))):
            offset = data.draw(st.integers(0, size - 1))
            disk.write(offset, noise(number, min(512, size - offset)))
            if data.draw(st.booleans()):
                data.draw(st.sampled_from([session.flush, session.checkpoint]))()
            assert whole(session.device("v")) == disk.data
        session.close()
        assert vault.open_volume("main").read() == disk.data


def test_layers_survive_reopening(vault: Vault) -> None:
    rng = random.Random(0)
    with vault.session() as session:
        disk = in_layers(session, session.create_volume("vda", SIZE))
    with vault.session() as session:
        check_device(session.device(), disk.data, rng)
    check_device(vault.device("main"), disk.data, rng)


def test_scattered_reads_are_the_same_reads(session: Session, head: HeadDevice) -> None:
    disk = in_layers(session, head)
    places = [at * BLOCK for at in (69, 0, 4, 20, 31, 66, 5, 4)]
    assert head.read_many([(at, BLOCK) for at in places]) == [
        disk.data[at : at + BLOCK] for at in places
    ]
    odd = [(5, 10), (SIZE - 3, 3), (BLOCK, BLOCK), (0, 0)]
    assert head.read_many(odd) == [disk.data[at : at + length] for at, length in odd]


def test_extents_tell_every_zero_block(session: Session, head: HeadDevice) -> None:
    disk = in_layers(session, head)
    assert tight(head, disk.data)
    session.flush()
    assert tight(head, disk.data)
    session.checkpoint()
    assert tight(head, disk.data)


def test_written_zeros_take_no_space(vault: Vault, session: Session, head: HeadDevice) -> None:
    head.write(0, noise("x", SIZE))
    head.write(0, bytes(SIZE))
    assert list(head.extents(0, SIZE)) == [(0, SIZE, True)]
    session.checkpoint()
    assert not any(head.tree.root)


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (0, SIZE + 1), (SIZE, 1), (SIZE + 1, 0), (0, -1)]
)
def test_nothing_beyond_the_end(
    session: Session, head: HeadDevice, offset: int, length: int
) -> None:
    before = session.vault.branch().seq
    for call in (head.read, head.zero, head.trim, lambda o, n: list(head.extents(o, n))):
        with pytest.raises(BadRequest):
            call(offset, length)
    with pytest.raises(BadRequest):
        head.write_many([(0, b"first"), (SIZE, b"beyond")])
    with pytest.raises(BadRequest):
        head.read_many([(0, BLOCK), (BLOCKS * BLOCK, BLOCK)])
    session.flush()
    assert session.vault.branch().seq == before, "nothing of a refused batch is taken"


def test_writes_before_one_that_fails_are_counted(
    monkeypatch: pytest.MonkeyPatch, session: Session, head: HeadDevice
) -> None:
    disk = in_layers(session, head)
    session.checkpoint()
    block = HeadDevice.block

    def damaged(self: HeadDevice, number: int) -> bytes:
        if number == 40:
            raise Damaged("the block cannot be read")
        return block(self, number)

    monkeypatch.setattr(HeadDevice, "block", damaged)
    with pytest.raises(Damaged):
        head.write_many([(40 * BLOCK + 5, b"part")])
    assert (session.pending_bytes, session.unstored[0]) == (0, 0)
    for number in range(3):
        disk.write(number * BLOCK, noise(number, 2 * BLOCK))
        with pytest.raises(Damaged):
            head.write_many([(9 * BLOCK, noise(9, BLOCK)), (40 * BLOCK + 5, b"part")])
        assert (session.pending_bytes, session.unstored[0]) == (3 * BLOCK, 1)
        session.flush()
        assert (session.pending_bytes, session.unstored[0]) == (0, 0)
    disk.data[9 * BLOCK : 10 * BLOCK] = noise(9, BLOCK)
    monkeypatch.undo()
    assert whole(head) == disk.data


def test_nothing_is_done_for_nothing(session: Session, head: HeadDevice) -> None:
    before = session.vault.branch().seq
    for at in (0, 5, SIZE):
        head.write(at, b"")
        head.zero(at, 0)
        head.trim(at, 0)
        assert head.read(at, 0) == b""
    session.flush()
    assert (session.vault.branch().seq, session.pending_bytes) == (before, 0)


def test_a_volume_of_no_bytes(session: Session) -> None:
    none = session.create_volume("none", 0)
    assert none.read(0, 0) == b""
    assert list(none.extents(0, 0)) == []
    none.trim(0, 0)
    session.snapshot()
    assert session.vault.open_volume("main~0", "none").read() == b""


def test_buffers_are_the_callers_again(session: Session, head: HeadDevice) -> None:
    buffer = bytearray(noise("a", 2 * BLOCK))
    kept = bytes(buffer)
    head.write(0, memoryview(buffer)[:BLOCK])
    head.write(BLOCK, memoryview(buffer)[BLOCK : BLOCK + 100])
    buffer[:] = bytes(len(buffer))
    session.flush()
    assert head.read(0, BLOCK + 100) == kept[: BLOCK + 100]


# -- long runs of zeros --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zero", "trim"])
def test_a_hundred_gibibytes_cleared_at_once(vault: Vault, kind: str) -> None:
    size = (100 << 30) + 5
    places = [0, 7 << 30, (7 << 30) + BLOCK, 50 << 30, size - 5]
    with vault.session() as session:
        head = session.create_volume("big", size)
        for at in places:
            head.write(at, b"data!")
        session.checkpoint()
        head.write(1 << 30, b"in the overlay")
        session.flush()
        head.write(2 << 30, b"in memory")
        getattr(head, kind)(0, size)
        assert list(head.extents(0, size)) == [(0, size, True)]
        assert not any(head.read(at, 5) != bytes(5) for at in [*places, 1 << 30, 2 << 30])
        assert len(head.overlay) + len(head.dirty) < 10
        head.write(50 << 30, b"again")
        session.flush()
    device = vault.device("main")
    assert [run for run in device.extents(0, size) if not run.zero] == [(50 << 30, BLOCK, False)]
    assert device.read(50 << 30, 5) == b"again"
    with vault.session() as session:
        session.checkpoint()
        assert session.device().read((50 << 30) - 1, 7) == b"\0again\0"


@pytest.mark.parametrize("blocks", [LONG_RUN - 1, LONG_RUN, LONG_RUN + 1])
def test_runs_around_the_limit_of_long_ones(session: Session, blocks: int) -> None:
    size = (LONG_RUN + 10) * BLOCK
    disk = Disk(size, session.create_volume("v", size))
    disk.write(0, noise("x", size))
    disk.write(3 * BLOCK, b"not stored yet")
    disk.zero(3 * BLOCK + 100, blocks * BLOCK)
    disk.write(9 * BLOCK + 5, b"after")
    disk.trim(7 * BLOCK, (blocks - 20) * BLOCK)
    check_device(session.device("v"), disk.data, random.Random(1))
    session.checkpoint()
    check_device(session.device("v"), disk.data, random.Random(1))


# -- readers and writers beside a commit ---------------------------------------------------------


def test_extents_beside_a_checkpoint(
    session: Session, head: HeadDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree is looked at after the overlay, or blocks in neither would be called holes."""
    upper_runs = HeadDevice.upper_runs

    def late(device: HeadDevice, first: int, stop: int) -> Any:
        session.checkpoint()
        return upper_runs(device, first, stop)

    head.write(5 * BLOCK, b"x")
    session.flush()
    monkeypatch.setattr(HeadDevice, "upper_runs", late)
    assert (5 * BLOCK, BLOCK, False) in list(head.extents(0, SIZE))


def test_extents_after_a_checkpoint_that_came_first(session: Session, head: HeadDevice) -> None:
    head.write(5 * BLOCK, b"x")
    session.flush()
    runs = head.upper_runs(0, BLOCKS)
    session.checkpoint()
    assert [run for run in runs if not run.zero] == [(5, 6, False)]


def test_extents_beside_a_commit(session: Session, head: HeadDevice) -> None:
    class Moving(dict[int, bytes]):
        def __iter__(self) -> Iterator[int]:
            for block in super().__iter__():
                yield block
                self.clear()  # the committer, which takes no lock for it

    head.write(0, noise(1, 9 * BLOCK))
    head.dirty = Moving(head.dirty)
    assert list(head.extents(0, SIZE)) == [
        (0, 9 * BLOCK, False),
        (9 * BLOCK, SIZE - 9 * BLOCK, True),
    ]


def test_a_lookup_beside_a_clear_sees_the_blocks_or_the_run() -> None:
    overlay = Overlay()

    class Cleared(dict[int, bytes]):
        def get(self, *arguments: Any) -> Any:
            if not overlay.cleared:
                overlay.clear(0, LONG_RUN)
            return super().get(*arguments)

    overlay.write(0, b"1" * 32)
    overlay.blocks = Cleared(overlay.blocks)
    assert overlay.lookup(0, 1) in ([bytes(32)], [b"1" * 32])


def test_the_same_bytes_written_again_are_another_write(
    session: Session, head: HeadDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While older writes of a block are settled, readers see the newest."""
    block, other = noise(1, BLOCK), noise(2, BLOCK)
    seen: list[bytes] = []
    write, write_singles = Overlay.write, Overlay.write_singles

    def watched(overlay: Overlay, first: int, ids: bytes) -> None:
        write(overlay, first, ids)
        seen.append(head.read(0, BLOCK))

    def watched_singles(overlay: Overlay, numbers: Sequence[int], ids: Sequence[bytes]) -> None:
        for number, oid in zip(numbers, ids, strict=True):
            write_singles(overlay, [number], [oid])
            seen.append(head.read(0, BLOCK))

    monkeypatch.setattr(Overlay, "write", watched)
    monkeypatch.setattr(Overlay, "write_singles", watched_singles)
    for data in (block, other + other, block):
        head.write(0, data)
    session.flush()
    assert seen == [block, block, block]


def test_part_of_a_block_written_while_it_is_cleared(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the write does not touch is zero, whichever of the two came first."""
    size = (LONG_RUN + 10) * BLOCK
    with vault.session() as session:
        head = session.create_volume("v", size)
        head.write(0, noise("old", 4 * BLOCK))
        session.flush()
        head.write(BLOCK, noise("newer", BLOCK))
        writer = threading.Thread(target=head.write, args=(BLOCK + 512, b"new" * 100))
        store = session._pipeline._store

        def slow(step: Step, meanwhile: Meanwhile) -> None:
            if not writer.ident:
                writer.start()
                writer.join(0.2)
            store(step, meanwhile)

        monkeypatch.setattr(session._pipeline, "_store", slow)
        head.zero(0, size)
        writer.join()
        expected = bytes(512) + b"new" * 100
        assert head.read(BLOCK, BLOCK).ljust(BLOCK) == expected + bytes(BLOCK - len(expected))
        head.write(1, b"no clear is under way any more")
        session.flush()
        assert head._clearing == 0


class Hammer:
    """Threads that each write blocks of their own, in an order that is known, and look back."""

    def __init__(self, session: Session, head: HeadDevice, writers: int, blocks: int) -> None:
        self.session, self.head = session, head
        self.blocks = blocks
        self.done: list[list[int]] = [[0] for _ in range(writers)]
        self.begun: list[list[int]] = [[0] for _ in range(writers)]
        self.stop = threading.Event()
        self.failures: list[BaseException] = []

    def content(self, writer: int, number: int) -> bytes:
        """What the write ``number`` of a writer puts into its block; now and then zeros."""
        if number == 0 or number % 7 in (3, 5):
            return bytes(BLOCK)
        return (writer << 40 | number).to_bytes(8) * (BLOCK // 8)

    def write(self, writer: int) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            at = (writer * self.blocks + number % self.blocks) * BLOCK
            self.begun[writer][0] = number
            if number % 7 == 3:
                self.head.zero(at, BLOCK)
            elif number % 7 == 5:
                self.head.trim(at, BLOCK)
            elif number % 7 == 6:
                self.head.write_many([(at, self.content(writer, number))])
            else:
                self.head.write(at, self.content(writer, number))
            self.done[writer][0] = number

    def newest(self, count: int, block: int) -> int:
        """The last of the first ``count`` writes that went to a block; 0 for none."""
        number = count - (count - block) % self.blocks
        return max(number, 0)

    def look(self, rng: random.Random) -> None:
        """What is read is at least as new as what was written before, and no newer than now."""
        writer = rng.randrange(len(self.done))
        first = rng.randrange(self.blocks)
        count = rng.randint(1, self.blocks - first)
        low = self.done[writer][0]
        at, length = (writer * self.blocks + first) * BLOCK, count * BLOCK
        data = self.head.read(at, length)
        holes = [run for run in self.head.extents(at, length) if run.zero]
        high = self.begun[writer][0]
        for block in range(first, first + count):
            numbers = self.possible(low, high, block)
            got = data[(block - first) * BLOCK :][:BLOCK]
            assert got in {self.content(writer, number) for number in numbers}, (writer, block)
            if any(hole.offset <= (writer * self.blocks + block) * BLOCK < hole.offset + hole.length
                   for hole in holes):  # fmt: skip
                zeros = [number for number in numbers if not any(self.content(writer, number))]
                assert zeros, f"writer {writer}, block {block}: a hole where data is"

    def possible(self, low: int, high: int, block: int) -> list[int]:
        """Writes of a block that may be the newest one between two moments."""
        oldest = low - (low - block) % self.blocks
        return [max(number, 0) for number in range(oldest, high + 1, self.blocks)]

    def check_state(self, data: bytes, low: list[int], high: list[int]) -> None:
        """A state is, for each writer, what was there after one of its writes."""
        for writer, (least, most) in enumerate(zip(low, high, strict=True)):
            start = writer * self.blocks * BLOCK
            part = data[start : start + self.blocks * BLOCK]
            assert any(part == self.after(writer, count) for count in range(least, most + 1)), (
                f"writer {writer} is at no moment between {least} and {most}"
            )

    def after(self, writer: int, count: int) -> bytes:
        return b"".join(
            self.content(writer, self.newest(count, block)) for block in range(self.blocks)
        )

    def forever(self, call: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                while not self.stop.is_set():
                    call()
            except BaseException as error:
                self.failures.append(error)
                self.stop.set()

        thread = threading.Thread(target=run)
        thread.start()
        return thread


def test_many_threads_beside_commits_checkpoints_and_snapshots(
    vault: Vault,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    nightly: bool,
    seed: int,
) -> None:
    monkeypatch.setattr(blockvault.behind, "COMMIT_BYTES", 16 * BLOCK)
    monkeypatch.setattr(blockvault.pending, "TRANSACTION_BYTES", 6 * BLOCK)
    monkeypatch.setattr(blockvault.committer, "PENDING_BYTES", 64 * BLOCK)
    monkeypatch.setattr(blockvault.folding, "NODES_AT_ONCE", 8)
    monkeypatch.setattr(blockvault.folding, "CHECKPOINT_BLOCKS", 40)
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-5)  # threads change places in the middle of everything
    writers, blocks = 3, 16
    points: list[tuple[bytes, list[int], list[int]]] = []
    with vault.session() as session:
        head = session.create_volume("v", writers * blocks * BLOCK)
        hammer = Hammer(session, head, writers, blocks)
        rng = random.Random(seed)

        def snapshot() -> None:
            low = [done[0] for done in hammer.done]
            made = session.snapshot()
            points.append((made.id, low, [begun[0] for begun in hammer.begun]))
            hammer.stop.wait(0.05)

        calls: list[Callable[[], None]] = [snapshot, session.flush, session.flush]
        calls += [lambda: hammer.look(rng)] * 3
        calls += [lambda number=number: hammer.write(number) for number in range(writers)]
        threads = [hammer.forever(call) for call in calls]
        hammer.stop.wait(30 if nightly else 3)
        # A slow disk gets more time, so that there is something to look at.
        while len(points) < 4 or min(done[0] for done in hammer.done) <= blocks:
            if hammer.stop.wait(0.1):
                break
        hammer.stop.set()
        for thread in threads:
            thread.join()
        if hammer.failures:
            raise hammer.failures[0]
        final = b"".join(hammer.after(n, done[0]) for n, done in enumerate(hammer.done))
        assert whole(head) == final
    assert len(points) > 3
    assert min(done[0] for done in hammer.done) > blocks
    for oid, low, high in points:
        hammer.check_state(vault.open_volume(oid.hex()).read(), low, high)
    assert vault.open_volume("main").read() == final


def test_sectors_of_the_same_block_from_many_threads(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a block are written one by one, each over what the others left."""
    monkeypatch.setattr(blockvault.behind, "COMMIT_BYTES", 4 * BLOCK)
    size, rounds = 5 * BLOCK + 1024, 60
    with vault.session() as session:
        head = session.create_volume("v", size)

        def write(first: int) -> None:
            for number in range(rounds):
                for at in range(first * 512, size, 4 * 512):
                    head.write(at, noise((at, number), 512))
                if not first:
                    session.checkpoint()

        threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = b"".join(noise((at, rounds - 1), 512) for at in range(0, size, 512))
        assert whole(head) == expected
    assert vault.open_volume("main").read() == expected
