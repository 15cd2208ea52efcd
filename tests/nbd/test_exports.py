"""Opened with the first client, shared, released with the last; one flush for many."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from blockvault.errors import Busy, IOFailed
from blockvault.nbd import exports as exports_module
from blockvault.nbd.exports import Exports, GroupFlush
from tests.nbd.conftest import waiting
from tests.nbd.memory import MemoryCatalogue, MemoryDevice, MemoryVolume


@pytest.fixture
def volume() -> MemoryVolume:
    return MemoryVolume("main/vda", MemoryDevice(4096))


@pytest.fixture
def exports(volume: MemoryVolume) -> Exports:
    return Exports(MemoryCatalogue(volume))


def test_a_device_is_shared_and_released_with_the_last(
    exports: Exports, volume: MemoryVolume
) -> None:
    first = exports.attach(exports.find("main/vda"))
    second = exports.attach(exports.find("main/vda"))
    assert first is second
    assert (volume.opened, volume.joined) == (1, 1)
    assert exports.open_exports() == [first]
    exports.release(first)
    assert (volume.opened, volume.closed, volume.device.flushes) == (1, 0, 0)
    exports.release(second)
    assert (volume.opened, volume.closed, volume.device.flushes) == (1, 1, 1)
    assert exports.open_exports() == []
    exports.release(exports.attach(volume))
    assert (volume.opened, volume.closed) == (2, 2)


def test_a_volume_that_cannot_be_opened_can_be_tried_again(
    exports: Exports, volume: MemoryVolume
) -> None:
    volume.busy = True
    with pytest.raises(Busy):
        exports.attach(volume)
    volume.busy = False
    exports.release(exports.attach(volume))
    assert (volume.opened, volume.closed) == (1, 1)


def test_who_cannot_join_closes_what_all_others_have_left(
    exports: Exports, volume: MemoryVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, enter = exports.attach(volume), exports._enter

    def enter_as_the_other_leaves(name: str) -> object:
        slot = enter(name)
        exports.release(first)
        return slot

    def refuse() -> None:
        raise Busy("it means another state now")

    monkeypatch.setattr(exports, "_enter", enter_as_the_other_leaves)
    monkeypatch.setattr(volume, "join", refuse)
    with pytest.raises(Busy):
        exports.attach(volume)
    assert (volume.opened, volume.closed) == (1, 1)
    assert exports.open_exports() == []


def test_errors_of_the_last_flush_do_not_keep_a_volume_open(
    exports: Exports, volume: MemoryVolume, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(what: str, offset: int, length: int) -> None:
        raise IOFailed("disk")

    volume.device.fault = fault
    exports.release(exports.attach(volume))
    assert volume.closed == 1
    assert "the last flush of main/vda failed" in caplog.text


def test_a_slow_open_delays_only_its_own_name(exports: Exports, volume: MemoryVolume) -> None:
    slow, entered, proceed = (
        MemoryVolume("slow", MemoryDevice(1)),
        threading.Event(),
        threading.Event(),
    )

    def open_slowly() -> MemoryDevice:
        entered.set()
        assert proceed.wait(5)
        return slow.device

    slow.open = open_slowly  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: exports.release(exports.attach(slow)))
    thread.start()
    assert entered.wait(5)
    exports.release(exports.attach(volume))
    assert volume.closed == 1
    proceed.set()
    thread.join(5)
    assert slow.closed == 1


def test_attach_and_release_from_many_threads(exports: Exports, volume: MemoryVolume) -> None:
    def come_and_go() -> None:
        for _ in range(200):
            export = exports.attach(volume)
            assert volume.opened == volume.closed + 1
            exports.release(export)

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert volume.opened == volume.closed > 0


def test_names_that_nobody_uses_are_forgotten(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports_module, "MAX_IDLE", 10)
    used = exports.attach(MemoryVolume("used", MemoryDevice(1)))
    for number in range(100):
        exports.release(exports.attach(MemoryVolume(f"v{number}", MemoryDevice(1))))
    assert len(exports.meters()) <= 11
    assert exports.meters()["used"] is used.meter


class SlowFlush(MemoryDevice):
    """A device whose flush takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__(64)
        self.entered = threading.Semaphore(0)
        self.proceed = threading.Semaphore(0)

    def flush(self) -> None:
        self.entered.release()
        assert self.proceed.acquire(timeout=5)
        super().flush()


def in_thread(call: Callable[[], None]) -> tuple[threading.Thread, list[BaseException | None]]:
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_flushes_that_come_during_one_share_the_next() -> None:
    device = SlowFlush()
    group = GroupFlush(device)
    first, _ = in_thread(group.flush)
    assert device.entered.acquire(timeout=5)
    device.write(0, b"late")  # while the first flush is under way: it need not cover this
    others = [in_thread(group.flush)[0] for _ in range(10)]
    wait_for(lambda: waiting(group) == 10)
    device.proceed.release()
    first.join(5)
    assert device.entered.acquire(timeout=5), "a second round begins for those who came later"
    assert all(thread.is_alive() for thread in others)
    device.proceed.release()
    for thread in others:
        thread.join(5)
    assert (device.flushes, group.rounds) == (2, 2)
    assert device.durable[:4] == b"late"


def test_all_who_share_a_flush_share_its_error_and_the_next_is_fresh() -> None:
    device = SlowFlush()
    group = GroupFlush(device)
    first = in_thread(group.flush)
    assert device.entered.acquire(timeout=5)

    def fault(what: str, offset: int, length: int) -> None:
        if device.flushes:
            raise IOFailed("disk")

    device.fault = fault
    others = [in_thread(group.flush) for _ in range(3)]
    wait_for(lambda: waiting(group) == 3)
    device.proceed.release(2)
    for thread, _ in [first, *others]:
        thread.join(5)
    assert first[1] == [None]
    assert [type(outcome[0]) for _, outcome in others] == [IOFailed] * 3
    device.fault = lambda what, offset, length: None
    device.proceed.release()
    group.flush()
