"""kill -9 of writers and readers, over and over, on one vault that is never given a rest."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from tests.faults import ledger
from tests.faults.ledger import Reached
from tools.faults.children import Child
from tools.faults.kill import EndedEarly, Victim

TAKE_OVER = 1.0
"""Seconds until a writer that stands by has the branch of a killed one; the median of all kills."""


class Stage:
    """Starts programs on one new vault, and at the end leaves none running."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started: list[Victim] = []

    def start(self, branch: str, *, mode: str = "safe", count: int = 1_000_000) -> Victim:
        """A writer that counts on ``branch``, or with "-" a reader."""
        words = [str(self.path), branch, str(count), "", mode]
        return self.run(sys.executable, "-m", "tests.faults.ledger", *words)

    def run(self, *command: str) -> Victim:
        self._started.append(Victim(command, name=" ".join(command[2:4])))
        return self._started[-1]

    def clear(self) -> None:
        for victim in self._started:
            victim.kill()


@pytest.fixture
def stage(scratch: Path) -> Iterator[Stage]:
    Vault.create(scratch).close()
    made = Stage(scratch)
    yield made
    made.clear()


class Cast:
    """A writer and its stand-by on each of two branches, and a reader; all may be killed."""

    def __init__(self, stage: Stage) -> None:
        self._start = stage.start
        self.promised: dict[str, Reached] = {}
        self.waits: list[float] = []
        self._readers = [self._start("-")]
        self._writers: dict[str, Victim] = {}
        self._waiting: dict[str, Victim] = {}
        for branch in ("main", "other"):
            self._writers[branch] = self._start(branch)
            self._writers[branch].wait_for(2)
            self._waiting[branch] = self._start(branch)

    def kill_a_writer(self, branch: str) -> None:
        victim, heir = self._writers[branch], self._waiting[branch]
        self._end(victim)
        self.waits.append(heir.wait_for(1))
        self._writers[branch], self._waiting[branch] = heir, self._start(branch)

    def kill_a_reader(self) -> None:
        reader = self._readers.pop()
        reader.wait_for(1)
        self._end(reader)
        self._readers.append(self._start("-"))

    def collect(self) -> dict[str, Reached]:
        """All that was promised until now."""
        for victim in (*self._readers, *self._writers.values()):
            self._take(list(victim.lines))
        return dict(self.promised)

    def end(self) -> None:
        everybody = [*self._readers, *self._writers.values(), *self._waiting.values()]
        for victim in everybody:
            self._end(victim)

    def _end(self, victim: Victim) -> None:
        self._take(victim.kill())
        assert not victim.errors, victim.errors

    def _take(self, lines: list[str]) -> None:
        self.promised = ledger.promised(lines, self.promised)


def test_two_writers_and_a_reader_killed_over_and_over(
    stage: Stage, seed: int, nightly: bool
) -> None:
    rng, cast = random.Random(seed), Cast(stage)
    cycles = 300 if nightly else 60
    with Child("tests.faults.ledger:lost_checker") as child:
        for cycle in range(cycles):
            time.sleep(rng.random() / 25)
            if rng.random() < 0.2:
                cast.kill_a_reader()
            else:
                cast.kill_a_writer(rng.choice(("main", "other")))
            if cycle % 10 == 0:  # beside those that live
                outcome = child.ask((stage.path, cast.collect()))
                assert outcome.returned
                assert not outcome.value
        cast.end()
        outcome = child.ask((stage.path, cast.promised))
    took = statistics.median(cast.waits)
    print(f"{cycles} kills, {cast.promised}, take-over {took:.3f} s, at most {max(cast.waits):.3f}")
    assert outcome.returned
    assert not outcome.value
    assert took < TAKE_OVER


def test_a_writer_that_promises_too_early_is_caught(stage: Stage) -> None:
    """The control: flushes that do nothing are found out by the first kill or two."""
    made: dict[str, Reached] = {}
    with Child("tests.faults.ledger:lost_checker") as child:
        for _ in range(5):
            victim = stage.start("main", mode="eager")
            victim.wait_for(12)
            made = ledger.promised(victim.kill(), made)
            if child.ask((stage.path, made)).value:
                return
    pytest.fail("the harness cannot see a broken promise")


def test_a_stopped_writer_holds_up_neither_reader_nor_its_own_death(stage: Stage) -> None:
    writer = stage.start("main")
    writer.wait_for(3)
    writer.stop()
    reader = stage.start("-")
    reader.wait_for(3)
    heir = stage.start("main")
    promised = ledger.promised(writer.kill())
    heir.wait_for(1)
    promised = ledger.promised(heir.kill(), promised)
    promised = ledger.promised(reader.kill(), promised)
    for each in (writer, heir, reader):
        assert not each.errors, each.errors
    assert not ledger.lost(stage.path, promised)


def test_a_stand_by_that_breaks_takes_nothing_over(stage: Stage) -> None:
    """The control: what dies at once is no take-over, however fast that is."""
    cast = Cast(stage)
    cast._waiting["main"] = stage.run(sys.executable, "-c", "raise SystemExit('broken')")
    with pytest.raises(EndedEarly, match="broken"):
        cast.kill_a_writer("main")


def test_four_writers_count_exactly(stage: Stage, nightly: bool) -> None:
    count = 2_000 if nightly else 150
    names = ["main", "b1", "b2", "b3"]
    with Vault.open(stage.path) as opened:
        for name in names[1:]:
            opened.create_branch(name)
    writers = [stage.start(name, count=count) for name in names]
    begun = time.monotonic()
    assert [writer.join() for writer in writers] == [0] * 4
    print(f"4 writers, {4 * count} flushes in {time.monotonic() - begun:.1f} s")
    expected = ledger.promised(line for writer in writers for line in writer.lines)
    assert {name: reached.number for name, reached in expected.items()} == dict.fromkeys(
        names, count
    )
    assert not ledger.lost(stage.path, expected)


HOLDER = """
import sys, time
from blockvault import Vault
with Vault.open(sys.argv[1]) as vault, vault.read() as reader:
    reader.last()
    print("holding", flush=True)
    time.sleep(60)
"""


def growth(stage: Stage, flushes: int) -> float:
    """Bytes by which the file grows with each of so many flushes."""
    data = stage.path / ".blockvault/data.mdb"
    before = data.stat().st_size
    ledger.write(stage.path, "main", flushes, lambda text: None)
    return (data.stat().st_size - before) / flushes


def test_killed_readers_do_not_make_the_file_grow(stage: Stage) -> None:
    """LMDB keeps all that a reader may be reading until somebody clears its slot."""
    ledger.write(stage.path, "main", 100, lambda text: None)
    usual = growth(stage, 300)
    for _ in range(3):
        stage.run(sys.executable, "-c", HOLDER, str(stage.path)).wait_for(1)
    held = growth(stage, 300)
    stage.clear()
    after = growth(stage, 300)
    print(f"bytes a flush: {usual:.0f}; readers holding {held:.0f}; readers killed {after:.0f}")
    assert held > 3 * usual + 4096, "the control: these readers hold nothing"
    assert after < usual + 4096
