"""The writers' queue by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from blockvault.errors import Busy
from blockvault.store import writelock
from blockvault.store.writelock import WriteLock


@pytest.fixture
def descriptors(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two open files of one inode: to flock they are as foreign as two processes."""
    opened = [os.open(tmp_path / "head", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    yield opened[0], opened[1]
    for descriptor in opened:
        os.close(descriptor)


def test_one_at_a_time_and_busy_after_the_timeout(descriptors: tuple[int, int]) -> None:
    first, second = map(WriteLock, descriptors)
    first.acquire()
    assert first.held_by_me()
    assert not second.held_by_me()
    started = time.monotonic()
    with pytest.raises(Busy, match="another process"):
        second.acquire(0.1)
    assert time.monotonic() - started >= 0.1
    assert not second.try_acquire(0)
    first.release()
    # A wait that was given up may get the lock first, and lets it go at once.
    assert second.try_acquire(5)
    second.release()


def test_an_interrupt_at_the_moment_of_the_lock_leaves_it_free(
    descriptors: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = map(WriteLock, descriptors)
    first.acquire()
    real = writelock._Waiting

    def waiting(descriptor: int) -> writelock._Waiting:
        made = real(descriptor)
        wait = made.done.wait

        def interrupted(timeout: float | None = None) -> bool:
            first.release()
            assert wait(20)
            raise KeyboardInterrupt

        monkeypatch.setattr(made.done, "wait", interrupted)
        return made

    monkeypatch.setattr(writelock, "_Waiting", waiting)
    with pytest.raises(KeyboardInterrupt):
        second.acquire(20)
    assert first.try_acquire(1)
    first.release()


def test_threads_wait_for_each_other(descriptors: tuple[int, int]) -> None:
    lock = WriteLock(descriptors[0])
    lock.acquire()
    caught: list[str] = []
    refused = threading.Event()

    def other() -> None:
        try:
            lock.acquire(0.1)
        except Busy as error:
            caught.append(error.message)
        refused.set()
        lock.acquire(10)
        lock.release()
        caught.append("got it")

    thread = threading.Thread(target=other)
    thread.start()
    assert refused.wait(10)
    lock.release()
    thread.join()
    assert "another thread" in caught[0]
    assert caught[1] == "got it"


def test_a_waiter_gets_the_lock_when_it_is_free(descriptors: tuple[int, int]) -> None:
    first, second = map(WriteLock, descriptors)
    first.acquire()
    threading.Timer(0.2, os.close, [os.dup(descriptors[0])]).start()  # closing a copy frees nothing
    freed = threading.Event()

    def free() -> None:
        freed.set()
        first.release()

    # The owner is this thread: only it may release, so it does so from a timer of its own thread.
    waiter = threading.Thread(target=lambda: (second.acquire(5), second.release()))
    waiter.start()
    time.sleep(0.3)
    assert waiter.is_alive()
    free()
    waiter.join(5)
    assert not waiter.is_alive()


def test_a_wait_that_was_given_up_takes_nothing_later(descriptors: tuple[int, int]) -> None:
    first, second = map(WriteLock, descriptors)
    first.acquire()
    for _ in range(3):
        with pytest.raises(Busy):
            second.acquire(0.05)
    first.release()
    deadline = time.monotonic() + 5
    while any(t.name == "vault-write-queue" for t in threading.enumerate()):
        assert time.monotonic() < deadline, "the helper threads end"
        time.sleep(0.01)
    for _ in range(3):
        assert first.try_acquire(0)
        first.release()
        assert second.try_acquire(0)
        second.release()


def test_turns_are_exact_under_contention(descriptors: tuple[int, int]) -> None:
    locks = [WriteLock(descriptor) for descriptor in descriptors]
    inside, total = [0], [0]

    def work(lock: WriteLock) -> None:
        for _ in range(50):
            lock.acquire(20)
            inside[0] += 1
            assert inside[0] == 1
            time.sleep(0.0002)
            total[0] += 1
            inside[0] -= 1
            lock.release()

    threads = [threading.Thread(target=work, args=(locks[n % 2],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == [200]


def test_no_descriptor_is_leaked(descriptors: tuple[int, int]) -> None:
    first, second = map(WriteLock, descriptors)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        first.acquire()
        thread = threading.Thread(target=lambda: (second.acquire(5), second.release()))
        thread.start()
        time.sleep(0.02)
        first.release()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) == before


def holding_what_was_waited_for(first: WriteLock, second: WriteLock) -> None:
    """``first`` gives the lock to ``second``, which has waited for it."""
    first.acquire()
    waiting = threading.Thread(target=second.acquire)
    waiting.start()
    assert soon(first.wanted)
    first.release()
    waiting.join()


def test_a_copy_of_the_descriptor_keeps_no_lock(descriptors: tuple[int, int]) -> None:
    """Such as a forked process may have, neither of a lock nor of a wait that was given up."""
    first, second = map(WriteLock, descriptors)
    holding_what_was_waited_for(first, second)
    copies = [os.dup(second._holding)]
    second.release()
    assert first.try_acquire(0)
    waiting = writelock._Waiting(descriptors[1])
    copies.append(os.dup(waiting._descriptor))
    assert waiting.finish() is None
    first.release()
    assert waiting.done.wait(10)
    assert second.try_acquire(0)
    second.release()
    for copy in copies:
        os.close(copy)


def test_a_forked_child_keeps_no_lock(
    descriptors: tuple[int, int], forked: Callable[[Callable[[], None]], None]
) -> None:
    """Nor does it end what its parent waits for, and has then."""
    first, second = map(WriteLock, descriptors)
    holding_what_was_waited_for(first, second)
    forked(lambda: None)
    assert not first.try_acquire(0)
    writelock._waits.remove(second._holding)
    os.close(second._holding)  # as the end of a killed process does
    assert first.try_acquire(5)
    first.release()


def test_the_holder_knows_whether_another_process_waits(descriptors: tuple[int, int]) -> None:
    first, second = map(WriteLock, descriptors)
    first.acquire()
    assert not first.wanted()
    waiting = threading.Thread(target=second.acquire)
    waiting.start()
    assert soon(first.wanted)
    first.release()
    waiting.join()
    assert not second.wanted()
    second.release()


def test_who_has_no_thread_to_wait_waits_all_the_same(
    descriptors: tuple[int, int], no_threads: Callable[[], AbstractContextManager[None]]
) -> None:
    first, second = map(WriteLock, descriptors)
    begin, refused, again = (threading.Event() for _ in range(3))

    def wait() -> None:
        begin.wait(10)
        with pytest.raises(Busy, match="another process"):
            second.acquire(0.05)
        refused.set()
        again.wait(10)
        second.acquire(20)
        second.release()

    first.acquire()
    waiting = threading.Thread(target=wait)
    waiting.start()
    before = os.listdir("/proc/self/fd")
    with no_threads():
        begin.set()
        assert refused.wait(10)
        assert not first.wanted(), "it waits no more"
        assert os.listdir("/proc/self/fd") == before
        again.set()
        assert soon(first.wanted)
        first.release()
        waiting.join()
    assert first.try_acquire(0)
    first.release()


def test_one_that_was_killed_waits_no_more(tmp_path: Path) -> None:
    path = tmp_path / "head"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    lock = WriteLock(descriptor)
    lock.acquire()
    code = (
        "import os, sys; from blockvault.store.writelock import WriteLock\n"
        "WriteLock(os.open(sys.argv[1], os.O_RDWR)).acquire()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as other:
        assert soon(lock.wanted)
        other.kill()
    assert not lock.wanted()
    lock.release()
    os.close(descriptor)


def test_the_holder_knows_whether_another_thread_waits(descriptors: tuple[int, int]) -> None:
    lock = WriteLock(descriptors[0])
    lock.acquire()
    waiting = threading.Thread(target=lambda: (lock.acquire(), lock.release()))
    waiting.start()
    assert soon(lock.wanted)
    lock.release()
    waiting.join()
    lock.acquire()
    assert not lock.wanted()
    lock.release()


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within some seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False
