"""A workload without a memory: it can be killed, powered off and started again for ever.

A writer counts.  Number ``n`` is written as a block that proves itself to place ``n % PLACES`` of
the volume, then flushed, then promised; every twentieth is a snapshot too.  So any state of the
volume says how far it came, and is right only if it holds exactly the last ``PLACES`` numbers up
to one number: a lost, torn or reordered write shows.

Run as ``python -m tests.faults.ledger DIR BRANCH COUNT [MOUNTPOINT [MODE]]``: writes ``COUNT``
numbers after the last one that is there; or with BRANCH ``-`` as a reader, which checks the newest
states of all branches over and over and promises what it saw.  A writer that finds its branch taken
stands by until it is free.  With a mount point nobody reads beside it, so it has every third number
promised by its journal.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from blockvault import Vault
from blockvault.errors import Busy, IOFailed, NotFound, VaultError
from tests.faults import crash_case, story
from tools.faults.crash import Cut, Replay, promises
from tools.faults.disk import Op
from tools.faults.mount import mark

BLOCK = 4096
PLACES = 24
SIZE = PLACES * BLOCK
SNAPSHOT_EVERY = 20
VOLUME = "vda"


def block(number: int) -> bytes:
    """Number 0 is the empty place; others are compressible text after a hash of it."""
    if number == 0:
        return bytes(BLOCK)
    body = b"%d " % number * (1 + number % 300)
    return (hashlib.sha256(body).digest() + body).ljust(BLOCK, b"\0")[:BLOCK]


def number_of(data: bytes) -> int:
    """The number in a block; -1 for a block that no writer wrote."""
    if not any(data):
        return 0
    digits = data[32:52].split(b" ")[0]
    number = int(digits) if digits.isdigit() else -1
    return number if number > 0 and block(number) == data else -1


def audit(data: bytes) -> int:
    """How far the writer of this volume had come; ValueError if no writer left it like this."""
    numbers = [number_of(data[at : at + BLOCK]) for at in range(0, SIZE, BLOCK)]
    last = max(numbers)
    expected = [last - (last - place) % PLACES for place in range(PLACES)]
    if numbers != [max(number, 0) for number in expected]:
        raise ValueError(f"a state that never was: {numbers}")
    return last


def standing(vault: Vault, rev: str) -> int:
    """The last number on a branch or in a snapshot; 0 for a branch without the volume."""
    position = vault.resolve(rev)
    if not position.volumes:
        return 0
    return audit(vault.device(rev, VOLUME).read(0, SIZE))


def write(
    path: Path, branch: str, count: int, promise: Callable[[str], None], *, journal: bool = False
) -> None:
    """Count on; ``journal``: some numbers are promised before the tables have them."""
    with Vault.open(path) as vault:
        if branch not in {there.name for there in vault.branches()}:
            vault.create_branch(branch, "main")
        with vault.session(branch, holder="ledger") as session:
            if not session.volumes:
                session.create_volume(VOLUME, SIZE)
            device = session.device(VOLUME)
            last = audit(device.read(0, SIZE))
            for number in range(last + 1, last + 1 + count):
                device.write(number % PLACES * BLOCK, block(number))
                if number % SNAPSHOT_EVERY:
                    (session.sync if journal and number % 3 == 0 else session.flush)()
                    promise(f"{branch} {number} flush")
                else:
                    session.snapshot(f"number {number}")
                    promise(f"{branch} {number} snapshot")


def watch(path: Path, promise: Callable[[str], None]) -> None:
    while True:
        with Vault.open(path) as vault:
            for branch in vault.branches():
                promise(f"{branch.name} {standing(vault, branch.name)} seen")


class Reached(NamedTuple):
    """How far a branch was promised to be: its last number, and its last snapshot's number."""

    number: int = 0
    snapshot: int = 0


def promised(
    texts: Iterable[str], before: Mapping[str, Reached] | None = None
) -> dict[str, Reached]:
    """The furthest promises for each branch: those of ``before``, and of lines from ``write``."""
    found = dict(before or {})
    for text in texts:
        branch, number, kind = text.split()
        reached = found.get(branch, Reached())
        found[branch] = Reached(
            max(reached.number, int(number)),
            max(reached.snapshot, int(number) if kind == "snapshot" else 0),
        )
    return found


def lost(path: Path, made: Mapping[str, Reached]) -> str:
    """What is wrong with the vault, given these promises; it is verified as well."""
    with Vault.open(path) as vault:
        if wrong := crash_case.problems(vault):
            return wrong
        for branch, reached in made.items():
            try:
                there = standing(vault, branch)
            except (ValueError, NotFound) as error:
                return f"{branch}: {error}"
            if there < reached.number:
                return f"{branch}: {reached.number} was promised, {there} is there"
            newest = newest_snapshot(vault, branch) if reached.snapshot else 0
            if newest < reached.snapshot:
                return f"{branch}: snapshot {reached.snapshot} was promised, {newest} is the newest"
    return ""


def newest_snapshot(vault: Vault, branch: str) -> int:
    """The number of the newest snapshot; older ones may have been pruned."""
    messages = (snapshot.message.split() for snapshot in vault.log(branch))
    return max((int(words[1]) for words in messages if words[0] == "number"), default=0)


def lost_checker() -> Callable[[tuple[Path, dict[str, Reached]]], str]:
    """For ``Child``."""
    return lambda task: lost(*task)


def cut_checker(lane: int, ops: list[Op], scratch: Path) -> Callable[[Cut], str]:
    """For ``Children``: what a cut of a trace of this program has lost."""
    replay, here = Replay(ops), scratch / f"lane{lane}"

    def check_cut(cut: Cut) -> str:
        crash_case.lay_out(replay, cut, here)
        try:
            return lost(here, promised(promises(ops, cut)))
        except VaultError as error:
            return f"{type(error).__name__} {error.reason}: {error.message}"

    return check_cut


def main(path: str, branch: str, count: str, mountpoint: str = "", mode: str = "safe") -> None:
    def promise(text: str) -> None:
        if mountpoint:
            try:
                mark(mountpoint, text)
            except OSError as error:
                raise IOFailed(f"nobody heard the promise: {error}") from error
        else:
            os.write(1, text.encode() + b"\n")

    story.quicken()
    story.endanger(mode)
    if branch == "-":
        watch(Path(path), promise)
    while True:
        try:
            return write(Path(path), branch, int(count), promise, journal=bool(mountpoint))
        except Busy:
            time.sleep(0.02)  # somebody has the branch: stand by
        except VaultError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
