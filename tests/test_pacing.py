"""Pacing: writers that outrun the disk are slowed down instead of being stopped for a batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest

from blockvault.pacing import LEAST_SECONDS, MOST_SECONDS, Pace
from blockvault.pending import TRANSACTION_BYTES

MB = 1 << 20
LIMIT = 64 * MB
REQUEST = 64 << 10


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Disk:
    """A disk of ``speed`` bytes a second that stores batches, and a guest that writes to it."""

    def __init__(self, speed: Callable[[float], float], hold: bool) -> None:
        self.clock = Clock()
        self.pace = Pace(self.clock)
        self.speed, self.hold = speed, hold
        self.pending = self.taken = self.batch = 0
        self.done_at = 0.0
        self.waits: list[float] = []

    def run(self, seconds: float, request_seconds: float = 0.0002) -> None:
        """The guest writes as fast as it is let for so long."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            began = self.clock.now
            if self.hold:
                self._until(self.clock.now + self.pace.hold(REQUEST, self.pending, LIMIT))
            while self.pending >= LIMIT:
                self._until(self.done_at)
            self.waits.append(self.clock.now - began)
            self.pending += REQUEST
            self.taken += REQUEST
            self._begin()
            self._until(self.clock.now + request_seconds)

    def _begin(self) -> None:
        if not self.batch and self.pending >= 8 * MB:
            self.pace.began()
            self._next()

    def _next(self) -> None:
        self.batch = min(self.pending, TRANSACTION_BYTES)
        self.done_at = self.clock.now + self.batch / self.speed(self.clock.now)

    def _until(self, when: float) -> None:
        """Let time pass, and what the disk does meanwhile happen."""
        while self.batch and self.done_at <= when:
            self.clock.now = max(self.clock.now, self.done_at)
            self.pending -= self.batch
            self.pace.stored(self.batch)
            self.batch = 0
            if self.pending >= 8 * MB:
                self._next()
        self.clock.now = max(self.clock.now, when)

    @property
    def longest(self) -> float:
        return max(self.waits)


def steady(speed: int) -> Callable[[float], float]:
    return lambda now: speed


@pytest.mark.parametrize("speed", [20 * MB, 60 * MB, 120 * MB])
def test_a_writer_is_slowed_to_the_speed_of_the_disk(speed: int) -> None:
    paced, stopped = Disk(steady(speed), hold=True), Disk(steady(speed), hold=False)
    for disk in (paced, stopped):
        disk.run(3)  # the first batches only tell how fast the disk is
        disk.waits.clear()
        disk.taken = 0
        disk.run(20)
    batch = TRANSACTION_BYTES / speed
    assert stopped.longest > 0.5 * batch, "the model shows what pacing is to prevent"
    assert paced.longest <= MOST_SECONDS
    assert paced.longest < 0.2 * batch
    assert paced.taken >= 0.97 * stopped.taken, "nothing of the disk's speed is given away"


def test_a_disk_that_becomes_faster_or_slower_is_followed() -> None:
    disk = Disk(lambda now: 200 * MB if 110 < now < 120 else 60 * MB, hold=True)
    disk.run(15)
    disk.taken = 0
    disk.run(4)
    assert disk.taken >= 0.9 * 4 * 200 * MB
    disk.run(5)
    disk.waits.clear()
    disk.run(10)
    assert disk.longest <= MOST_SECONDS


def test_a_disk_that_keeps_up_holds_nobody_back() -> None:
    disk = Disk(steady(800 * MB), hold=True)
    disk.run(10)
    assert disk.longest == 0


def test_nobody_waits_before_the_speed_is_known_or_while_there_is_room() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.hold(LIMIT, LIMIT, LIMIT) == 0
    pace.began()
    clock.now += 1
    pace.stored(TRANSACTION_BYTES)
    assert pace.hold(LIMIT, LIMIT // 2, LIMIT) == 0
    assert pace.hold(LIMIT, LIMIT, LIMIT) == pytest.approx(MOST_SECONDS)


def test_small_batches_say_nothing_of_the_speed() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(1000):
        pace.began()
        clock.now += 0.01
        pace.stored(4096)
    assert pace.hold(REQUEST, LIMIT, LIMIT) == 0


def test_writers_share_the_speed_and_short_waits_add_up() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.began()
    clock.now += 0.16
    pace.stored(TRANSACTION_BYTES)
    pending = LIMIT * 3 // 4
    each = 4096 * 0.16 / TRANSACTION_BYTES
    assert each < LEAST_SECONDS
    held = [pace.hold(4096, pending, LIMIT) for _ in range(100)]
    assert held[0] == 0
    assert held[-1] == pytest.approx(100 * each, rel=0.01)


@pytest.mark.parametrize("told", [True, False])
def test_writers_have_room_until_the_end_of_a_fold_if_the_pace_is_told_of_it(told: bool) -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.began()
    clock.now += 0.5
    pace.stored(70 * MB)
    pending, waits, end = LIMIT // 2, [0.0], clock.now + 0.4
    with pace.standing() if told else nullcontext():
        while clock.now < end and pending < LIMIT:
            waits.append(pace.hold(REQUEST, pending, LIMIT))
            clock.now += waits[-1] + 0.0004
            pending += REQUEST
    assert (pending < LIMIT) is told
    assert max(waits) <= MOST_SECONDS
