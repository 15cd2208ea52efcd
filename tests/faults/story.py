"""A long life of a vault, decided by a seed, and what must be left of it after any crash.

``script`` makes a list of steps: writes, zeroes, trims, flushes, syncs (flushes that a journal may
promise), snapshots, imports, branches, tags, rollbacks, prunes, collections, reopenings.  ``play``
does them on a real vault and promises each one when its call has returned.  ``Model`` does them on
plain bytes; ``fingerprints`` are its states after each step.

After a crash a vault must look like the model after *some* step, at or after the last promised
one that makes things durable: all that was promised is there, and nothing is half there.  Writes
reach a vault in their order, so a state between two flushes is allowed, but only whole events.
A step is one event, but for a zero that cuts blocks: ``Life.within`` has the states inside it.

Run as ``python -m tests.faults.story DIR SEED STEPS [MOUNTPOINT]``; with a mount point the promises
become marks in its trace.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lmdb

import blockvault.behind
import blockvault.folding
import blockvault.journaling
import blockvault.pending
from blockvault import Vault
from blockvault.model.retention import Policy
from blockvault.ops import forget, gc, ingest, prune
from blockvault.session import Session
from blockvault.store import filesystem, freespace, journal, pages
from tools.faults.mount import mark

BLOCK = 4096
VOLUMES = {"vda": 40 * BLOCK, "vdb": 9 * BLOCK + 700}
SETTLING = frozenset({"flush", "snapshot", "volume", "reopen", "branch", "tag", "rollback",
                      "switch", "rename", "delete", "ingest"})  # fmt: skip
"""Steps after which everything before them is durable, and in the tables."""
PROMISED = SETTLING | {"sync"}
"""Steps after which everything before them is durable."""


class Step(NamedTuple):
    kind: str
    arguments: tuple[Any, ...] = ()


class Promise(NamedTuple):
    """Step ``step`` is done.  A flush left a barrier: event ``seq`` of branch ``branch``."""

    step: int
    branch: int = 0
    seq: int = 0

    def text(self) -> str:
        return json.dumps(self)

    @classmethod
    def parse(cls, text: str) -> Promise:
        return cls(*json.loads(text))


def script(seed: int, count: int) -> list[Step]:
    """``count`` steps that all succeed, in this order, on a new vault."""
    return list(_Author(random.Random(seed)).steps(count))


class _Author:
    """Invents steps, and knows just enough of the state to invent only possible ones."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._branches = ["main"]
        self._head = "main"
        self._tags: list[str] = []
        self._named = 0

    def steps(self, count: int) -> Iterator[Step]:
        yield from itertools.islice(self._steps(), count)

    def _steps(self) -> Iterator[Step]:
        yield from (Step("volume", item) for item in VOLUMES.items())
        weights = {"write": 30, "zero": 5, "trim": 6, "flush": 12, "sync": 14, "snapshot": 8,
                   "reopen": 4, "branch": 4, "tag": 4, "rollback": 4, "switch": 4, "rename": 1,
                   "delete": 1, "ingest": 3, "prune": 2, "gc": 5}  # fmt: skip
        while True:
            [kind] = self._rng.choices(list(weights), list(weights.values()))
            if kind == "sync":  # of something that the tables cannot have yet
                yield Step("write", self._write())
            yield Step(kind, getattr(self, f"_{kind}", tuple)())

    def _range(self) -> tuple[str, int, int]:
        volume, size = self._rng.choice(list(VOLUMES.items()))
        offset = self._rng.randrange(size)
        length = min(self._rng.choice((1, 512, BLOCK, 3 * BLOCK, 9 * BLOCK)), size - offset)
        if self._rng.random() < 0.7:
            offset -= offset % BLOCK
        return volume, offset, length

    def _write(self) -> tuple[Any, ...]:
        volume, offset, length = self._range()
        return volume, offset, length, self._rng.randrange(1 << 30)

    def _zero(self) -> tuple[Any, ...]:
        return self._range()

    def _trim(self) -> tuple[Any, ...]:
        return self._range()

    def _name(self) -> str:
        self._named += 1
        return f"name{self._named}"

    def _rev(self) -> str:
        return self._rng.choice(self._branches + self._tags)

    def _branch(self) -> tuple[Any, ...]:
        rev, name = self._rev(), self._name()
        self._branches.append(name)
        return name, rev

    def _tag(self) -> tuple[Any, ...]:
        rev, name = self._rev(), self._name()
        self._tags.append(name)
        return name, rev

    def _rollback(self) -> tuple[Any, ...]:
        return self._rng.choice(self._branches), self._rev()

    def _switch(self) -> tuple[Any, ...]:
        self._head = self._rng.choice(self._branches)
        return (self._head,)

    def _rename(self) -> tuple[Any, ...]:
        old, new = self._rng.choice(self._branches), self._name()
        self._branches[self._branches.index(old)] = new
        self._head = new if self._head == old else self._head
        return old, new

    def _ingest(self) -> tuple[Any, ...]:
        return self._rng.choice(list(VOLUMES)), self._rng.randrange(1 << 30)

    def _delete(self) -> tuple[Any, ...]:
        spare = [name for name in self._branches if name != self._head]
        if not spare:
            return ("",)
        name = self._rng.choice(spare)
        self._branches.remove(name)
        return (name,)


# -- the model ---------------------------------------------------------------------------------


class Model:
    """The same steps on plain bytes: branch and tag names, each with its volumes' contents."""

    def __init__(self) -> None:
        self.head = "main"
        self.branches: dict[str, dict[str, bytes]] = {"main": {}}
        self.tags: dict[str, dict[str, bytes]] = {}

    def do(self, step: Step) -> None:
        getattr(self, f"_{step.kind}", lambda *_: None)(*step.arguments)

    def print(self) -> Print:
        return print_of(self.head, self.branches | self.tags)

    def _put(self, volume: str, offset: int, data: bytes) -> None:
        old = self.branches[self.head][volume]
        self.branches[self.head][volume] = old[:offset] + data + old[offset + len(data) :]

    def _volume(self, name: str, size: int) -> None:
        self.branches[self.head][name] = bytes(size)

    def _write(self, volume: str, offset: int, length: int, seed: int) -> None:
        self._put(volume, offset, content(seed, length))

    def _zero(self, volume: str, offset: int, length: int) -> None:
        self._put(volume, offset, bytes(length))

    def _trim(self, volume: str, offset: int, length: int) -> None:
        """Whole blocks only; the last block of the volume counts as whole at its end."""
        start, end = -(-offset // BLOCK) * BLOCK, offset + length
        stop = end if end == VOLUMES[volume] else end // BLOCK * BLOCK
        if start < stop:
            self._put(volume, start, bytes(stop - start))

    def _rev(self, name: str) -> dict[str, bytes]:
        return dict(self.branches[name] if name in self.branches else self.tags[name])

    def _branch(self, name: str, rev: str) -> None:
        self.branches[name] = self._rev(rev)

    def _tag(self, name: str, rev: str) -> None:
        self.tags[name] = self._rev(rev)

    def _rollback(self, branch: str, rev: str) -> None:
        self.branches[branch] = self._rev(rev)

    def _switch(self, branch: str) -> None:
        self.head = branch

    def _rename(self, old: str, new: str) -> None:
        self.branches[new] = self.branches.pop(old)
        self.head = new if self.head == old else self.head

    def _delete(self, name: str) -> None:
        self.branches.pop(name, None)

    def _ingest(self, volume: str, seed: int) -> None:
        self.branches[self.head][volume] = content(seed, VOLUMES[volume])


def content(seed: int, length: int) -> bytes:
    """What a write puts down: now and then zeros or text, mostly noise."""
    rng = random.Random(seed)
    if seed % 7 == 0:
        return bytes(length)
    if seed % 5 == 0:
        return (b"line %d\n" % seed * (length // 8 + 1))[:length]
    return rng.randbytes(length)


class Print(NamedTuple):
    """A state in short: the current branch, and a hash of each name's volumes."""

    head: str
    names: tuple[tuple[str, str], ...]

    def of(self, name: str) -> str:
        return dict(self.names)[name]


def print_of(head: str, names: dict[str, dict[str, bytes]]) -> Print:
    return Print(head, tuple((name, hash_of(names[name])) for name in sorted(names)))


def hash_of(volumes: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(volumes):
        digest.update(name.encode() + len(volumes[name]).to_bytes(8) + volumes[name])
    return digest.hexdigest()[:16]


class Life(NamedTuple):
    """``after[n]`` is the model's state after n steps, ``within[n]`` are those on the way there."""

    steps: list[Step]
    after: list[Print]
    within: list[list[Print]]

    @classmethod
    def of(cls, steps: list[Step]) -> Life:
        model = Model()
        ways = [[model.print()]]
        for step in steps:
            ways.append([])
            for part in events_of(step):
                model.do(part)
                ways[-1].append(model.print())
        return cls(steps, [way[-1] for way in ways], [way[:-1] for way in ways])

    def may_be(self, seen: Print, promised: int) -> bool:
        """Whether ``seen`` is a state at or after step ``promised``."""
        way = [self.after[promised:], *self.within[promised + 1 :]]
        return any(seen in states for states in way)


def fingerprints(steps: list[Step]) -> list[Print]:
    """The model's state before the first step, and after each."""
    return Life.of(steps).after


def events_of(step: Step) -> list[Step]:
    """The step as one step for each event: zeros write the parts of blocks, then clear the rest."""
    if step.kind != "zero":
        return [step]
    volume, offset, length = step.arguments
    end = offset + length
    start = min(-(-offset // BLOCK) * BLOCK, end)
    stop = end if end == VOLUMES[volume] else max(start, end // BLOCK * BLOCK)
    parts = [(offset, start), (stop, end), (start, stop)]
    return [Step("zero", (volume, at, to - at)) for at, to in parts if at < to]


# -- the real vault ------------------------------------------------------------------------------


class Player:
    """Does steps on a vault, in one process, with one open session at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.vault = Vault.open(path)
        self._session: Session | None = None

    def do(self, step: Step) -> None:
        getattr(self, f"_{step.kind}")(*step.arguments)

    def promise(self, number: int, step: Step) -> Promise:
        if step.kind != "flush":
            return Promise(number)
        branch = self.vault.branch()
        return Promise(number, branch.id, branch.barrier_seq)

    def close(self) -> None:
        self._end()
        self.vault.close()

    def _begin(self) -> Session:
        if self._session is None:
            self._session = self.vault.session()
        return self._session

    def _end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _volume(self, name: str, size: int) -> None:
        self._begin().create_volume(name, size)

    def _write(self, volume: str, offset: int, length: int, seed: int) -> None:
        self._begin().device(volume).write(offset, content(seed, length))

    def _zero(self, volume: str, offset: int, length: int) -> None:
        self._begin().device(volume).zero(offset, length)

    def _trim(self, volume: str, offset: int, length: int) -> None:
        self._begin().device(volume).trim(offset, length)

    def _flush(self) -> None:
        self._begin().flush()

    def _sync(self) -> None:
        self._begin().sync()

    def _snapshot(self) -> None:
        self._begin().snapshot("a step of the story")

    def _reopen(self) -> None:
        self.close()
        self.vault = Vault.open(self._path)

    def _branch(self, name: str, rev: str) -> None:
        self._end()
        self.vault.create_branch(name, rev)

    def _tag(self, name: str, rev: str) -> None:
        self._end()
        self.vault.tag(name, rev)

    def _rollback(self, branch: str, rev: str) -> None:
        self._end()
        self.vault.rollback(branch, rev)

    def _switch(self, branch: str) -> None:
        self._end()
        self.vault.switch(branch)

    def _rename(self, old: str, new: str) -> None:
        self._end()
        self.vault.rename_branch(old, new)

    def _ingest(self, volume: str, seed: int) -> None:
        self._end()
        with tempfile.NamedTemporaryFile(suffix=".raw") as image:
            image.write(content(seed, VOLUMES[volume]))
            image.flush()
            ingest.import_images(self.vault, [ingest.Image(Path(image.name), volume)])

    def _prune(self) -> None:
        """Forget all that no name keeps; beside an open session, as gc does."""
        forget.execute(self.vault, prune.plan(self.vault, Policy(last=1, events=0)))

    def _gc(self) -> None:
        gc.collect(self.vault, wait=0.0)

    def _delete(self, name: str) -> None:
        self._end()
        if name:
            self.vault.delete_branch(name)


def play(path: Path, steps: list[Step], promise: Callable[[Promise], None]) -> None:
    player = Player(path)
    for number, step in enumerate(steps, 1):
        player.do(step)
        if step.kind in PROMISED:
            promise(player.promise(number, step))
    player.close()
    promise(Promise(len(steps)))


def look(vault: Vault) -> Print:
    """The fingerprint of a real vault, read through its public face."""
    names = [branch.name for branch in vault.branches()] + [tag.name for tag in vault.tags()]
    return print_of(vault.head, {name: volumes_at(vault, name) for name in names})


def volumes_at(vault: Vault, rev: str) -> dict[str, bytes]:
    position = vault.resolve(rev)
    return {v.name: vault.device(rev, v.name).read(0, v.size) for v in position.volumes}


def quicken(change: Callable[[object, str, int], None] = setattr) -> None:
    """Small limits, so that a short story meets all that a long one does: background commits,
    checkpoints, journals, holes.
    """
    change(blockvault.behind, "COMMIT_BYTES", 24 * BLOCK)
    change(blockvault.pending, "TRANSACTION_BYTES", 10 * BLOCK)
    change(blockvault.folding, "NODES_AT_ONCE", 8)
    change(blockvault.folding, "CHECKPOINT_BLOCKS", 30)
    change(blockvault.folding, "LEFT_OVER_BLOCKS", 15)
    change(blockvault.journaling, "AFTER_FLUSHES", 0)
    change(journal, "HALF", 16 * BLOCK)
    change(freespace, "_WORTH_BYTES", 4 * BLOCK)
    change(ingest, "_LEAST_HOLE", 1)


def endanger(mode: str) -> None:
    """Take one safety away: the positive controls."""
    match mode:
        case "no-sync":
            setattr(lmdb, "open", functools.partial(lmdb.open, sync=False))  # noqa: B010
        case "no-metasync":
            setattr(lmdb, "open", functools.partial(lmdb.open, metasync=False))  # noqa: B010
        case "no-path-sync":
            setattr(filesystem, "sync_path", lambda path: None)  # noqa: B010
        case "eager":  # promises flushes that were never made
            for name in ("flush", "sync"):
                setattr(Session, name, lambda session: None)
        case "loose":  # writes of the journal are not synced
            setattr(filesystem, "open_synced", functools.partial(os.open, flags=os.O_RDWR))  # noqa: B010
        case "unnamed":  # nor is the name of a journal
            unsynced = {**vars(filesystem), "sync_path": lambda path: None}
            setattr(journal, "filesystem", SimpleNamespace(**unsynced))  # noqa: B010
        case "hasty":  # makes holes of what the commit before the newest one needs
            rows = freespace._together

            def one_more(fd: int, newest: pages.Meta, row: int, limit: int) -> Iterator[Any]:
                return rows(fd, newest, row, limit + 1)

            setattr(freespace, "_together", one_more)  # noqa: B010
        case _:
            assert mode == "safe"


def main(path: str, seed: str, count: str, mountpoint: str = "", mode: str = "safe") -> None:
    def promise(made: Promise) -> None:
        if mountpoint:
            mark(mountpoint, made.text())
        else:
            os.write(1, made.text().encode() + b"\n")

    quicken()
    endanger(mode)
    if not (Path(path) / ".blockvault").exists():
        Vault.create(path).close()
        promise(Promise(0))
    play(Path(path), script(int(seed), int(count)), promise)


if __name__ == "__main__":
    main(*sys.argv[1:])
