"""Write transactions of who has time: rests beside those who wait, and hardly any without them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from blockvault.ops import turns
from blockvault.ops.turns import Turns


class Store:
    """Counts transactions; somebody waits for those that are named."""

    def __init__(self, awaited: set[int]) -> None:
        self.awaited = awaited
        self.count = 0

    @contextmanager
    def write(self) -> Iterator[Any]:
        yield SimpleNamespace(awaited=self.count in self.awaited)
        self.count += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only sleeping and working move."""
    clock = SimpleNamespace(now=100.0, slept=[])

    def sleep(seconds: float) -> None:
        clock.slept.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def rests(clock: SimpleNamespace, awaited: set[int], count: int, work: float) -> list[float]:
    """How long is rested after each of ``count`` transactions that take ``work`` seconds."""
    taken = []
    turn = Turns(SimpleNamespace(store=Store(awaited)))  # type: ignore[arg-type]
    for _ in range(count):
        before = sum(clock.slept)
        with turn.write():
            clock.now += work
        taken.append(round(sum(clock.slept) - before, 6))
    return taken


def test_nobody_waits(clock: SimpleNamespace) -> None:
    assert rests(clock, set(), 50, 0.01) == [0] * 50


def test_beside_a_writer_it_rests_as_long_as_it_works(clock: SimpleNamespace) -> None:
    found = rests(clock, {3}, 100, 0.05)
    assert found[:3] == [0, 0, 0]
    polite = [rest for rest in found[3:] if rest == 0.05]
    assert len(polite) == pytest.approx(turns.POLITE_SECONDS / 0.1, abs=1)
    assert found[3 + len(polite)] == 0


def test_it_is_alone_again_a_while_after_the_last_one(clock: SimpleNamespace) -> None:
    turn = Turns(SimpleNamespace(store=Store({1})))  # type: ignore[arg-type]
    with turn.write():
        pass
    assert turn.alone
    with turn.write():
        pass
    assert not turn.alone
    clock.now += turns.POLITE_SECONDS
    assert turn.alone


def test_rests_are_bounded(clock: SimpleNamespace) -> None:
    assert rests(clock, {0}, 1, 5.0) == [turns._MOST]
    assert rests(clock, {0}, 1, 0.0001) == [turns._LEAST]
