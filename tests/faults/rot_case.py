"""What a damaged vault shows: checked as ``verify`` does, and read through its public face.

Runs in child processes.  Each part (a branch's volume, its log, the names, ...) is read by itself,
so that damage in one does not hide what became of the others.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
from lmdb.verify import VerifyError
from lmdb.verify import verify as structure

from blockvault import Vault
from blockvault.errors import VaultError
from blockvault.ops import check
from blockvault.store import caches, objects
from tools.faults.bitrot import Damage, Seen

HOME = ".blockvault"
FILES = ("data.mdb", "head")


def vault_checker(lane: int, sound: Path, scratch: Path, file: str) -> Callable[[Damage], Seen]:
    """The careful check of damages of ``file`` in copies of the vault ``sound``: verify it."""
    here = scratch / f"verify{lane}" / HOME
    rows = table_rows(sound / HOME)

    def check_damage(damage: Damage) -> Seen:
        lay_out(sound, here, file, damage)
        errors = verify_errors(here)
        same = not errors and not structure_errors(here) and table_rows(here) == rows
        return Seen(tuple(errors), {}, same)

    return check_damage


def vault_reader(
    lane: int, sound: Path, scratch: Path, file: str, believe: bool
) -> Callable[[Damage], Seen]:
    """The careless check: read everything.

    ``believe`` is the control: no object is held against its id.
    """
    here = scratch / f"read{lane}" / HOME
    if believe:
        for module in (objects, caches):
            setattr(module, "checked", lambda data, oid: data)  # noqa: B010

    def check_damage(damage: Damage) -> Seen:
        lay_out(sound, here, file, damage)
        witness = _Witness()
        vault = witness.look("open", lambda: Vault.open(here), digest=False)
        if vault is not None:
            with vault:
                witness.read(vault)
        return Seen(tuple(witness.errors), witness.digests)

    return check_damage


def lay_out(sound: Path, here: Path, file: str, damage: Damage) -> None:
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(sound / HOME / name, here / name)
    damage.apply(here / file)


def verify_errors(home: Path) -> list[str]:
    """What ``blockvault verify`` would say, or that the vault cannot be opened."""
    try:
        with Vault.open(home) as vault:
            return [f"{p.kind}: {p.message}" for p in check.verify(vault).problems]
    except VaultError as error:
        return [f"{error.reason}: {error.message}"]


def structure_errors(home: Path) -> list[str]:
    """What LMDB's offline verifier says; it never opens the engine."""
    try:
        found = list(structure(str(home)))  # type: ignore[no-untyped-call]
    except VerifyError as error:
        return [str(error)]
    # A number of pages that is too high means nothing: LMDB itself may come to count so.
    return [each for each in found if not _too_many(str(each))]


def _too_many(problem: str) -> bool:
    if not re.match(r"main/index DB: walked \d+ (leaf|branch) pages", problem):
        return False
    *walked, claimed = map(int, re.findall(r"\d+", problem))
    return max(walked) < claimed


def table_rows(home: Path) -> str:
    """A digest of every row of every table, met in order and asked for by its key.

    Rows of the index are the same under each of the keys under which the program looks for them.
    """
    digest = hashlib.sha256()
    indexed = []
    with lmdb.open(str(home), readonly=True, lock=False, max_dbs=32) as env, env.begin() as txn:
        for name, _ in txn.cursor():
            table = env.open_db(name, txn=txn, create=False)
            cursor = txn.cursor(db=table)
            seek = cursor.set_key_dup if table.flags()["dupsort"] else None
            for key, value in txn.cursor(db=table):
                if name == b"index" and key[1:] in (b"", b"\0", b"\1"):
                    indexed.append(b"%d " % len(value) + key[:1] + value)
                else:
                    digest.update(b"%d %d " % (len(key), len(value)) + key + value)
                if not (seek(key, value) if seek else txn.get(key, db=table) == value):
                    return "a row that is there is not found by its key"
    digest.update(b"".join(sorted(indexed)))
    return digest.hexdigest()


class _Witness:
    def __init__(self) -> None:
        self.errors: list[str] = []
        self.digests: dict[str, str] = {}

    def look(
        self, part: str, read: Callable[..., Any], *arguments: Any, digest: bool = True
    ) -> Any:
        """``read()``, and note either its digest or its error; only ``VaultError`` is an answer."""
        try:
            value = read(*arguments)
        except VaultError as error:
            self.errors.append(f"{part}: {error.reason}: {error.message}")
            return None
        if digest:
            self.digests[part] = hashlib.sha256(repr(value).encode()).hexdigest()[:16]
        return value

    def read(self, vault: Vault) -> None:
        self.look("head", lambda: vault.head)
        branches = self.look("branches", vault.branches) or []
        tags = self.look("tags", vault.tags) or []
        self.look("events", lambda: list(vault.events()))
        for name in (thing.name for thing in (*branches, *tags)):
            position = self.look(name, vault.resolve, name, digest=False)
            self.look(f"{name} log", lambda rev: list(vault.log(rev)), name)
            for volume in position.volumes if position else ():
                self.look(f"{name}:{volume.name}", _content, vault, name, volume)
        for branch in branches:
            self.look(f"{branch.name} reflog", vault.reflog, branch.name)


def _content(vault: Vault, name: str, volume: Any) -> bytes:
    return bytes(vault.device(name, volume.name).read(0, volume.size))
