"""The NBD server killed, and its power cut: what was flushed over NBD is there afterwards.

A client counts: it writes a block, sends FLUSH, waits for the answer and only then promises the
number.  After each disaster the volume must hold exactly a prefix of its writes, at least up to the
last promise: every flushed byte is there, and no block is a third thing.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from tests.faults import ledger
from tools.faults.children import Child
from tools.faults.disk import Mark
from tools.faults.kill import Victim
from tools.faults.mount import PowerMount

Start = Callable[..., Victim]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Victim] = []

    def run(module: str, *words: object) -> Victim:
        started.append(Victim([sys.executable, "-m", module, *map(str, words)]))
        return started[-1]

    yield run
    for victim in started:
        victim.kill()


def make(path: Path) -> None:
    with Vault.create(path) as vault, vault.session() as session:
        session.create_volume(ledger.VOLUME, ledger.SIZE)


def test_the_server_is_killed_over_and_over(
    scratch: Path, start: Start, seed: int, nightly: bool
) -> None:
    make(scratch)
    rng, made, slowest = random.Random(seed), {"main": ledger.Reached()}, 0.0
    cycles, sock = (300 if nightly else 10), scratch / "nbd.sock"
    with Child("tests.faults.ledger:lost_checker") as child:
        for cycle in range(cycles):
            begun = time.monotonic()
            words = ("-V", scratch, "serve", "--export", "main", "--socket", sock)
            server = start("blockvault.cli.main", *words)
            client = start("tests.faults.nbd_case", "count", sock, f"main/{ledger.VOLUME}")
            client.wait_for(3)
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(rng.random() / 10)
            server.kill()
            client.join()
            assert client.lines, (client.errors, server.errors)
            made = ledger.promised(client.lines, made)
            outcome = child.ask((scratch, made))
            assert outcome.returned, f"cycle {cycle}: {outcome}"
            assert not outcome.value, f"cycle {cycle}: {outcome.value}"
    print(f"{cycles} kills, {made}, longest start to the third flush {slowest:.2f} s")


def power_cuts(
    power: PowerMount, start: Start, sock: Path, seed: int, cycles: int, mode: str = "safe"
) -> tuple[int, str]:
    rng, made = random.Random(seed), {"main": ledger.Reached()}
    with Child("tests.faults.ledger:lost_checker") as child:
        for cycle in range(cycles):
            server = start("tests.faults.nbd_case", "serve", power.path, sock, mode)
            server.wait_for(1)
            power.arm(rng.randrange(5, 200))
            export = f"main/{ledger.VOLUME}"
            client = start("tests.faults.nbd_case", "count", sock, export, power.path)
            client.join()
            server.kill()
            ops = power.cut(rng.getrandbits(32))
            made = ledger.promised((op.text for op in ops if isinstance(op, Mark)), made)
            outcome = child.ask((power.path, made))
            if outcome.value or not outcome.returned:
                return made["main"].number, f"cycle {cycle}: {outcome}"
    return made["main"].number, ""


def test_power_cuts_under_the_server(
    power: PowerMount, scratch: Path, start: Start, seed: int, nightly: bool
) -> None:
    make(power.path)
    cycles = 500 if nightly else 10
    reached, wrong = power_cuts(power, start, scratch / "nbd.sock", seed, cycles)
    print(f"{cycles} power cuts, {reached} numbers")
    assert not wrong
    assert reached > cycles


@pytest.mark.parametrize("mode", ["no-sync", "eager"])
def test_a_server_that_does_not_sync_is_caught(
    power: PowerMount, scratch: Path, start: Start, seed: int, mode: str
) -> None:
    make(power.path)
    reached, wrong = power_cuts(power, start, scratch / "nbd.sock", seed, 12, mode)
    assert wrong, f"{mode}: {reached} numbers, and the harness cannot see a loss"
