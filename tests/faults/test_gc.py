"""Collections beside writers and readers: taken apart phase by phase, and abandoned in each.

A story goes on while a collection does one phase at a time between its steps, or dies in the middle
of a phase.  Readers hold old states open across all of it.  Nothing that a name or a reader needs
may go missing, and once a collection runs through, nothing that nobody needs may stay.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockvault import Vault
from blockvault.model.retention import Policy
from blockvault.ops import check, forget, gc, prune
from blockvault.ops.reading import StateDevice
from blockvault.store import freespace
from blockvault.storing import Prepared
from tests.faults import ledger, story
from tools.faults.children import Child
from tools.faults.kill import Victim

FORGET_ALL = Policy(last=1, events=0)


class Collector:
    """Does a step at each call: a phase, or one transaction of the sweep.  Now and then it dies."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._steps: Iterator[None] = iter(())
        self.complete = self.deaths = 0

    def step(self, vault: Vault) -> None:
        try:
            next(self._steps)
        except StopIteration:
            self._steps = self._run(vault)
        else:
            if self._rng.random() < 0.1:
                self.die()

    def die(self) -> None:
        self.deaths += 1
        self._steps = iter(())

    def _run(self, vault: Vault) -> Iterator[None]:
        collection = gc.Collection(vault)
        if self._rng.random() < 0.5:
            forget.execute(vault, prune.plan(vault, FORGET_ALL))
            yield
        collection.mark()
        yield
        collection.condemn()
        yield
        while not collection.drain(0.0):
            yield
        collection.settle()
        yield
        for _ in collection.sweep():
            yield
        self.complete += 1
        collection.forget_records()


class Held:
    """Devices that stay open, with what they showed at first."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._open: list[tuple[StateDevice, bytes]] = []

    def step(self, vault: Vault) -> None:
        for device, shown in self._open:
            assert device.read(0, device.size) == shown
        if len(self._open) >= 3:
            self._open.pop(0)
        names = [branch.name for branch in vault.branches()] + [tag.name for tag in vault.tags()]
        name = self._rng.choice(names)
        for volume in vault.resolve(name).volumes:
            device = vault.device(name, volume.name)
            self._open.append((device, device.read(0, device.size)))

    def forget(self) -> None:
        self._open.clear()


def test_collections_interleaved_with_a_story(
    scratch: Path, seed: int, nightly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freespace, "_WORTH_BYTES", 4 * story.BLOCK)
    complete = deaths = 0
    for number in range(3_000 if nightly else 40):
        path = scratch / str(number)
        path.mkdir()
        done = interleave(path, random.Random(seed + number), story.script(seed + number, 60))
        complete, deaths = complete + done.complete, deaths + done.deaths
    print(f"{number + 1} interleavings, {complete} collections, {deaths} deaths")
    assert complete > number
    assert deaths > number


def interleave(path: Path, rng: random.Random, steps: list[story.Step]) -> Collector:
    Vault.create(path).close()
    prints = story.fingerprints(steps)
    player, collector, held = story.Player(path), Collector(rng), Held(rng)
    for step, expected in zip(steps, prints[1:], strict=True):
        if step.kind in ("reopen", "gc"):
            held.forget()
            collector.die()
        player.do(step)
        if step.kind in story.SETTLING:
            assert story.look(player.vault) == expected, step
            held.step(player.vault)
        for _ in range(rng.randrange(4)):
            collector.step(player.vault)
    held.forget()
    player.close()
    with Vault.open(path) as vault:
        problems = check.verify(vault).problems
        assert not problems
        assert story.look(vault) == prints[-1]
        forget.execute(vault, prune.plan(vault, FORGET_ALL))
        done = gc.collect(vault)
        assert done.complete
        assert story.look(vault) == prints[-1]
        assert check.verify(vault).ok
        # A collection may leave a share of what it found dead, not of what is left after it.
        assert gc.plan(vault).dead <= max(done.plan.dead * gc.LEAVE, 4096)
    return collector


class HastyCollection(gc.Collection):
    """Neither waits for those who began before it nor reads what they wrote."""

    def drain(self, wait: float) -> bool:
        return True

    def settle(self) -> None:
        pass


@pytest.mark.parametrize("kind", [gc.Collection, HastyCollection])
def test_content_that_was_dead_is_written_again(
    scratch: Path, kind: type[gc.Collection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer looks, finds its content stored, and commits when that is condemned.

    The hasty collection is the control: then a block goes missing, and verify must say so.
    """
    Vault.create(scratch).close()
    data = random.Random(1).randbytes(64 * story.BLOCK)
    with Vault.open(scratch) as vault:
        with vault.session() as session:
            device = session.create_volume("vda", len(data))
            for content in (data, bytes(len(data))):
                device.write(0, content)
                session.snapshot("one")
        forget.execute(vault, prune.plan(vault, FORGET_ALL))
        collection = kind(vault)
        collection.mark()
        honest = Prepared.__init__

        def prepare(*arguments: Any) -> None:
            honest(*arguments)
            collection.condemn()
            assert collection.drain(0.0) is (kind is HastyCollection)

        with vault.session() as session:
            session.device("vda").write(0, data)
            with monkeypatch.context() as patched:
                patched.setattr(Prepared, "__init__", prepare)
                session.flush()
        assert collection.drain(0.0)
        collection.settle()
        assert all(step >= 0 for step in collection.sweep())
        assert check.verify(vault).ok is (kind is gc.Collection)


COLLECT = """
import sys
from blockvault import Vault
from blockvault.errors import Busy
from blockvault.model.retention import Policy
from blockvault.ops import forget, gc, prune
from blockvault.store import freespace
freespace._WORTH_BYTES = 1 << 16
with Vault.open(sys.argv[1]) as vault:
    while True:
        forget.execute(vault, prune.plan(vault, Policy(last=2, events=0)))
        try:
            done = gc.collect(vault, wait=1.0)
        except Busy:
            continue
        print(int(done.complete), flush=True)
"""


def test_a_collector_killed_beside_two_writers_and_a_reader(
    scratch: Path, seed: int, nightly: bool
) -> None:
    Vault.create(scratch).close()
    rng, module = random.Random(seed), "tests.faults.ledger"
    words = [[str(scratch), name, "1000000"] for name in ("main", "other", "-")]
    others = [Victim([sys.executable, "-m", module, *each]) for each in words]
    cycles, collected = (200 if nightly else 8), 0
    try:
        for _ in range(cycles):
            collector = Victim([sys.executable, "-c", COLLECT, str(scratch)])
            others.append(collector)
            collector.wait_for(rng.choice((0, 1, 1, 2)))
            time.sleep(rng.random() / 10)
            collected += collector.kill().count("1")
            assert not collector.errors, collector.errors
            others.remove(collector)
    finally:
        made = ledger.promised(line for other in others for line in other.kill())
    assert not any(other.errors for other in others), [other.errors for other in others]
    with Child("tests.faults.ledger:lost_checker") as child:
        outcome = child.ask((scratch, made))
    print(f"{cycles} kills, {collected} collections, {made}")
    assert outcome.returned, outcome
    assert not outcome.value
    assert collected
