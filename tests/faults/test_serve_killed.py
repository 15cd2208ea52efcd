"""``blockvault serve`` killed over and over: what was flushed over NBD is there afterwards.

A client counts: it writes a block, sends FLUSH, waits for the answer and only then promises the
number.  After each kill the volume must hold exactly a prefix of its writes, at least up to the
last promise, and the next server starts at once.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from blockvault import Vault
from tests.faults import ledger
from tools.faults.children import Child
from tools.faults.kill import Victim

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


class Killed(NamedTuple):
    """What became of a vault whose server was killed over and over."""

    made: dict[str, ledger.Reached]
    wrong: str
    slowest: float
    """The longest start to the third flush, in seconds."""


def kill_over_and_over(
    path: Path, start: Start, seed: int, cycles: int, *server_words: object
) -> Killed:
    make(path)
    rng, made, slowest = random.Random(seed), {"main": ledger.Reached()}, 0.0
    sock = path / "nbd.sock"
    with Child("tests.faults.ledger:lost_checker") as child:
        for cycle in range(cycles):
            begun = time.monotonic()
            server = start(*server_words)
            client = start("tests.faults.nbd_ledger", sock, f"main/{ledger.VOLUME}")
            client.wait_for(3)
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(rng.random() / 10)
            server.kill()
            client.join()
            assert client.lines, (client.errors, server.errors)
            assert "Traceback" not in client.errors + server.errors
            made = ledger.promised(client.lines, made)
            outcome = child.ask((path, made))
            assert outcome.returned, f"cycle {cycle}: {outcome}"
            if outcome.value:
                return Killed(made, f"cycle {cycle}: {outcome.value}", slowest)
    return Killed(made, "", slowest)


def test_the_server_is_killed_over_and_over(
    scratch: Path, start: Start, seed: int, nightly: bool
) -> None:
    cycles = 300 if nightly else 10
    serve = ("-V", scratch, "serve", "--export", "main", "--socket", scratch / "nbd.sock")
    made, wrong, slowest = kill_over_and_over(
        scratch, start, seed, cycles, "blockvault.cli.main", *serve
    )
    print(f"{cycles} kills, {made}, longest start to the third flush {slowest:.2f} s")
    assert not wrong


def test_a_server_that_ignores_flush_is_caught(scratch: Path, start: Start, seed: int) -> None:
    server = ("tests.faults.nbd_case", scratch, scratch / "nbd.sock", "deaf")
    assert kill_over_and_over(scratch, start, seed, 5, *server).wrong
