"""Several processes in one vault: turns, snapshots, readers that died, forks, kill -9."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from blockvault.errors import Busy, IOFailed
from blockvault.ids import object_id
from blockvault.store import filesystem
from blockvault.store.env import LmdbStore
from blockvault.store.gathering import ObjectWriter
from blockvault.store.objects import ObjectReader
from tests.store.material import (
    OPTIONS,
    block,
    commit_something,
    noise,
    run_python,
    start_python,
)

WRITE_COUNTS = """
with LmdbStore.open(sys.argv[1]) as store:
    for number in range(int(sys.argv[2])):
        with store.write() as writer:
            count = int(writer.get("refs", b"count") or b"0")
            writer.put("refs", b"count", b"%d" % (count + 1))
            writer.append(b"x", 1, time.time_ns() // 1000)
"""


def test_four_writing_processes_count_exactly(store: LmdbStore, home: Path) -> None:
    writers = [start_python(WRITE_COUNTS, home, 40) for _ in range(4)]
    seen = []
    while any(writer.poll() is None for writer in writers):
        with store.read() as reader:
            seen.append(int(reader.get("refs", b"count") or b"0"))
            assert reader.last().seq == seen[-1], "a commit is seen whole or not at all"
        time.sleep(0.002)
    assert [writer.wait() for writer in writers] == [0] * 4
    for writer in writers:
        writer.communicate()
    assert seen == sorted(seen)
    with store.read() as reader:
        assert reader.get("refs", b"count") == b"160"
        assert len(list(reader.records())) == 160


def test_another_process_reads_what_was_committed(store: LmdbStore, home: Path) -> None:
    with store.write() as writer:
        oid = commit_something(writer, 5)
        code = (
            "with LmdbStore.open(sys.argv[1], readonly=True) as store, store.read() as reader:\n"
            "    print(reader.last().seq, reader.locate([bytes.fromhex(sys.argv[2])]))\n"
        )
        assert run_python(code, home, oid.hex()).stdout == "0 [None]\n"
    assert run_python(code, home, oid.hex()).stdout == "1 [65536]\n"


# -- a process that writes and does not stop ------------------------------------------------------


HOLD_WRITE = """
with LmdbStore.open(sys.argv[1]) as store, store.write() as writer:
    commit_something(writer, 1)
    print("writing", flush=True)
    sys.stdin.readline()
"""


def let_go(process: subprocess.Popen[str]) -> None:
    """A line on its standard input is what a process waits for."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


@pytest.fixture
def holder(store: LmdbStore, home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of a write transaction."""
    process = start_python(HOLD_WRITE, home)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    end(process)


def test_readers_do_not_wait_for_a_stopped_writer(
    store: LmdbStore, home: Path, holder: subprocess.Popen[str]
) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    store.close()
    started = time.monotonic()
    with LmdbStore.open(home, readonly=True) as reading, reading.read() as reader:
        assert reader.last().seq == 0
    assert time.monotonic() - started < 2


def test_writing_beside_a_stopped_writer_is_busy_in_time(
    store: LmdbStore, home: Path, holder: subprocess.Popen[str]
) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    with LmdbStore.open(home, write_timeout=0.2) as impatient:
        with pytest.raises(Busy, match="another process has been writing") as caught:
            impatient.write().__enter__()
        assert caught.value.reason == "write-locked"
    os.kill(holder.pid, signal.SIGCONT)
    let_go(holder)
    holder.wait()
    with store.write() as writer:  # the given-up wait does not hold up anybody
        assert writer.last().seq == 1
        commit_something(writer, 2)


def test_opening_beside_a_stopped_writer_opens_for_reading(
    store: LmdbStore, home: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    os.kill(holder.pid, signal.SIGSTOP)
    monkeypatch.setattr("blockvault.store.env.OPEN_WAIT", 0.2)
    with LmdbStore.open(home) as again:
        with again.read() as reader:
            assert reader.last().seq == 0
        with pytest.raises(Busy, match="open it again"):
            again.write().__enter__()
    os.kill(holder.pid, signal.SIGCONT)
    let_go(holder)
    holder.wait()
    with LmdbStore.open(home) as again, again.write() as writer:
        assert writer.last().seq == 1


def test_a_waiting_writer_goes_on_when_the_holder_is_done(
    store: LmdbStore, holder: subprocess.Popen[str]
) -> None:
    threading.Timer(0.3, let_go, [holder]).start()
    with store.write() as writer:
        assert writer.last().seq == 1


def test_a_killed_writer_frees_its_turn_at_once_and_leaves_nothing(
    store: LmdbStore, holder: subprocess.Popen[str]
) -> None:
    threading.Timer(0.3, holder.kill).start()
    started = time.monotonic()
    with store.write() as writer:
        assert writer.last().seq == 0
        commit_something(writer, 2)
    assert time.monotonic() - started < 2


def test_ctrl_c_ends_the_wait_for_a_writer(
    store: LmdbStore, home: Path, holder: subprocess.Popen[str]
) -> None:
    code = (
        "store = LmdbStore.open(sys.argv[1])\n"
        "print('open', flush=True)\n"
        "sys.stdin.readline()\n"
        "print('waiting', flush=True)\n"
        "try:\n"
        "    store.write().__enter__()\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    store.close()
    # It opens while nobody writes, and then has to wait.
    let_go(holder)
    holder.wait()
    waiting = start_python(code, home)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "open\n"
    second = start_python(HOLD_WRITE, home)
    assert second.stdout is not None
    second.stdout.readline()
    let_go(waiting)
    assert waiting.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    waiting.send_signal(signal.SIGINT)
    out, _ = waiting.communicate(timeout=10)
    assert out == "interrupted\n"
    second.communicate("\n")


# -- kill -9 ---------------------------------------------------------------------------------------


PROMISE = """
with LmdbStore.open(sys.argv[1]) as store:
    with store.read() as reader:
        first = reader.last().seq + 1
    for number in range(first, first + 100_000):
        with store.write() as writer:
            commit_something(writer, number)
        print(number, flush=True)
"""


def test_no_promise_is_lost_when_a_writer_is_killed(home: Path, store: LmdbStore) -> None:
    store.close()
    promised = 0
    for cycle in range(8):
        victim = start_python(PROMISE, home)
        assert victim.stdout is not None
        for _ in range(1 + cycle * 3):
            victim.stdout.readline()
        victim.kill()
        lines = victim.communicate()[0].splitlines()
        with LmdbStore.open(home) as after, after.read() as reader:
            last = reader.last().seq
            assert last >= max([promised, *map(int, lines)])
            promised = last
            assert [record.first_seq for record in reader.records()] == list(range(1, last + 1))
            assert len(list(reader.scan("refs"))) == last
            ObjectReader(after).get_many([object_id(block(n)) for n in range(1, last + 1)])
    assert promised > 8


# -- reader slots ----------------------------------------------------------------------------------


HOLD_READ = """
store = LmdbStore.open(sys.argv[1], readonly=True)
readers = [store.read() for _ in range(int(sys.argv[2]))]
for reader in readers:
    reader.__enter__()
print("reading", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def hold_readers(home: Path, count: int) -> subprocess.Popen[str]:
    process = start_python(HOLD_READ, home, count)
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    return process


def slots(store: LmdbStore) -> int:
    """Reader slots in use, by whomever."""
    return store._env.lmdb.info()["num_readers"]


def listed(store: LmdbStore) -> int:
    return len(store._env.lmdb.readers().splitlines()) - 1


def test_slots_of_killed_readers_are_freed_at_the_next_opening(
    store: LmdbStore, home: Path
) -> None:
    store.close()
    hold_readers(home, 30).communicate("\n")
    with LmdbStore.open(home) as again:
        assert listed(again) <= 1


def test_a_full_table_of_dead_readers_is_cleared_when_a_reader_needs_it(
    store: LmdbStore, home: Path
) -> None:
    hold_readers(home, filesystem.READERS - 10).communicate("\n")
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(store.read())
    assert listed(store) < 50


def test_a_full_table_of_living_readers_is_busy(store: LmdbStore, home: Path) -> None:
    process = hold_readers(home, filesystem.READERS - 10)
    with ExitStack() as stack:

        def begin_twenty() -> None:
            for _ in range(20):
                stack.enter_context(store.read())

        with pytest.raises(Busy, match="too many readers"):
            begin_twenty()
    process.communicate("\n")
    with store.read() as again:
        assert again.last().seq == 0


def test_dead_readers_are_cleared_while_writing_goes_on(
    store: LmdbStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockvault.store.writetxn.READER_CHECK_EVERY", 4)
    hold_readers(home, 5).communicate("\n")
    assert listed(store) >= 5
    for number in range(4):
        with store.write() as writer:
            commit_something(writer, number)
    assert listed(store) < 5


def test_a_dead_reader_does_not_make_the_file_grow(store: LmdbStore, home: Path) -> None:
    def churn() -> int:
        for number in range(300):
            with store.write() as writer:
                writer.put("refs", b"big", bytes([number % 256]) * 40_000)
        return (home / "data.mdb").stat().st_size

    before = churn()
    hold_readers(home, 1).communicate("\n")
    assert churn() - before < 300 * 40_000 // 2


# -- fork ------------------------------------------------------------------------------------------


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked child; its exit status (0 if it raised nothing)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads, on purpose
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
    process.join(30)
    code = process.exitcode
    process.kill()
    return -99 if code is None else code


def test_a_forked_child_is_refused_and_the_parent_goes_on(
    store: LmdbStore, home: Path, tmp_path: Path
) -> None:
    with store.write() as writer:
        commit_something(writer, 1)

    def child() -> None:
        for use in (store.read, store.write):
            with pytest.raises(IOFailed, match="forked"):
                use().__enter__()
        with pytest.raises(IOFailed, match="after the fork"):
            LmdbStore.open(home)
        store.close()
        with LmdbStore.create(tmp_path / "another", OPTIONS) as mine, mine.write() as writer:
            commit_something(writer, 2)

    with store.read() as before:
        assert in_child(child) == 0
        assert listed(store) == 1
        assert before.last().seq == 1
    with store.write() as writer:
        assert writer.last().seq == 1
        commit_something(writer, 3)


def test_a_child_may_open_what_its_parent_has_closed(store: LmdbStore, home: Path) -> None:
    store.close()

    def child() -> None:
        with LmdbStore.open(home) as mine, mine.write() as writer:
            commit_something(writer, 1)

    assert in_child(child) == 0
    with LmdbStore.open(home) as again, again.read() as reader:
        assert reader.last().seq == 1


def test_a_child_forked_inside_a_transaction_cannot_end_it(store: LmdbStore, home: Path) -> None:
    def child() -> None:
        for transaction in (reader, writer):
            with pytest.raises(IOFailed, match="forked"):
                transaction.__exit__(None, None, None)

    with store.read() as reader, store.write() as writer:
        commit_something(writer, 1)
        assert in_child(child) == 0
        assert reader.last().seq == 0
    assert not run_python(WRITE_COUNTS, home, 1).stderr
    with store.read() as after:
        assert after.last().seq == 2


def test_a_child_does_not_keep_the_write_lock_of_its_parent(store: LmdbStore, home: Path) -> None:
    with store.write() as writer:
        commit_something(writer, 1)
        pid = os.fork()
        if not pid:
            time.sleep(20)
            os._exit(0)
    started = time.monotonic()
    assert not run_python(WRITE_COUNTS, home, 1).stderr
    assert time.monotonic() - started < 10
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_compressing_and_reading_work_in_a_child(store: LmdbStore, home: Path) -> None:
    datas = [noise(n) for n in range(300)]
    ids = [object_id(data) for data in datas]

    def add(target: LmdbStore) -> None:
        objects = ObjectWriter(target)
        objects.add_blocks(ids, datas)
        with target.write() as writer:
            writer.add_frames(objects.finish())
        assert ObjectReader(target).get_many(ids) == dict(zip(ids, datas, strict=True))

    add(store)  # the parent's threads are running now
    store.close()

    def child() -> None:
        with LmdbStore.open(home) as mine:
            with mine.write() as writer:
                writer.clear("index")
            add(mine)

    assert in_child(child) == 0
