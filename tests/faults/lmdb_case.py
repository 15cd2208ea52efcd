"""The control of every harness here: plain LMDB, whole or with a safety switched off.

As a program it commits one numbered record after another and promises each one after its commit;
as a library it says whether a directory still holds all that was promised.  Run by the tests as
``python -m tests.faults.lmdb_case DIR MODE FIRST COUNT [MOUNTPOINT]``.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import lmdb

from tools.faults.bitrot import Damage, Seen
from tools.faults.crash import Cut, Replay, promises
from tools.faults.disk import Op
from tools.faults.mount import mark

MODES: dict[str, dict[str, bool]] = {
    "safe": {},
    "no-metasync": {"metasync": False},
    "no-sync": {"sync": False},
}


def value(number: int) -> bytes:
    """A record that proves itself: what must be under the key ``number``."""
    body = random.Random(number).randbytes(100 + number * 997 % 6000)
    return hashlib.sha256(body).digest() + body


def key(number: int) -> bytes:
    return b"%08d" % number


def open_env(path: Path, mode: str = "safe") -> lmdb.Environment:
    return lmdb.open(str(path), map_size=1 << 36, max_dbs=4, subdir=True, **MODES[mode])


def commit(env: lmdb.Environment, number: int) -> None:
    with env.begin(write=True) as txn:
        txn.put(key(number), value(number))
        if number >= 8:  # pages are freed and used again
            txn.delete(key(number - 8))
            txn.put(key(number - 8) + b"+", value(number - 8))


def missing(path: Path, promised: Sequence[int]) -> list[int]:
    """Which promised records are not there as written; then one more commit must work."""
    env = open_env(path)
    try:
        with env.begin() as txn:
            there = {int(k[:8]): bytes(v) for k, v in txn.cursor()}
        wrong = [n for n, data in there.items() if data != value(n)]
        lost = [n for n in promised if n not in there]
        if there:
            commit(env, max(there) + 1)
        return sorted({*wrong, *lost})
    finally:
        env.close()


def promise_checker() -> Callable[[tuple[Path, list[int]]], list[int]]:
    """For ``Child``: ``missing`` where a broken file can kill nobody else."""
    return lambda task: missing(*task)


def rot_checker(lane: int, sound: Path, scratch: Path, prove: bool) -> Callable[[Damage], Seen]:
    """For ``Children``: read a damaged copy of ``sound``; ``prove``: check the hashes in values."""
    here = scratch / f"lane{lane}"
    here.mkdir(exist_ok=True)

    def check(damage: Damage) -> Seen:
        shutil.copyfile(sound / "data.mdb", here / "data.mdb")
        damage.apply(here / "data.mdb")
        errors: list[str] = []
        digest = hashlib.sha256()
        try:
            with lmdb.open(str(here), readonly=True, lock=False) as env, env.begin() as txn:
                for found, data in txn.cursor():
                    digest.update(found + data)
                    if prove and hashlib.sha256(data[32:]).digest() != data[:32]:
                        errors.append(f"value of {found!r}")
        except lmdb.Error as error:
            errors.append(str(error))
        return Seen(tuple(errors), {} if errors else {"all": digest.hexdigest()})

    return check


def numbers(texts: Sequence[str]) -> list[int]:
    return [int(text) for text in texts]


def crash_checker(lane: int, ops: list[Op], scratch: Path) -> Callable[[Cut], list[int] | str]:
    """For ``Children``: what a cut of a trace of this program has lost."""
    replay, here = Replay(ops), scratch / f"lane{lane}"

    def check(cut: Cut) -> list[int] | str:
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        replay.image(cut).write_to(here)
        promised = numbers(promises(ops, cut))
        if not (here / "env").exists() or not (here / "env/data.mdb").exists():
            return promised
        try:
            return missing(here / "env", promised)
        except lmdb.Error as error:
            return f"{type(error).__name__} with {len(promised)} promised"

    return check


def sync_directory(path: str) -> None:
    number = os.open(path, os.O_RDONLY)
    os.fsync(number)
    os.close(number)


def main(path: str, mode: str, first: str, count: str, mountpoint: str = "") -> None:
    Path(path).mkdir(exist_ok=True)
    with open_env(Path(path)) as env:  # LMDB itself syncs no names, and creates in no safe order
        env.sync(True)
    for directory in (path, str(Path(path).parent)):
        sync_directory(directory)
    env = open_env(Path(path), mode)
    for number in range(int(first), int(first) + int(count)):
        commit(env, number)
        if mountpoint:
            mark(mountpoint, str(number))
        else:
            os.write(1, b"%d\n" % number)
    env.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
