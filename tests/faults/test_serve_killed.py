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
            client = start("tests.faults.nbd_ledger", sock, f"main/{ledger.VOLUME}")
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
