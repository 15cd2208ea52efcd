"""What a damaged vault shows: everything read through its public face, and then verified.

Runs in child processes.  Each part (a branch's volume, its log, the names, ...) is read by itself,
so that damage in one does not hide what became of the others.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockvault import Vault
from blockvault.errors import VaultError
from blockvault.ops import check
from blockvault.store import objects
from tools.faults.bitrot import Damage, Seen

HOME = ".blockvault"
FILES = ("data.mdb", "head")


def vault_checker(
    lane: int, sound: Path, scratch: Path, file: str, believe: bool
) -> Callable[[Damage], Seen]:
    """Judge damages of ``file`` in copies of the vault ``sound``.

    ``believe`` is the control: no object is held against its id, and nothing is verified.
    """
    here = scratch / f"lane{lane}" / HOME
    if believe:
        setattr(objects, "_checked", lambda data, oid: data)  # noqa: B010

    def check_damage(damage: Damage) -> Seen:
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        for name in FILES:
            shutil.copyfile(sound / HOME / name, here / name)
        damage.apply(here / file)
        return see(here, verify=not believe)

    return check_damage


def see(home: Path, *, verify: bool) -> Seen:
    witness = _Witness()
    vault = witness.look("open", lambda: Vault.open(home), digest=False)
    if vault is not None:
        with vault:
            witness.read(vault)
            if verify:
                found = witness.look("verify", lambda: check.verify(vault).problems, digest=False)
                witness.errors += [f"verify: {p.kind}: {p.message}" for p in found or []]
    return Seen(tuple(witness.errors), witness.digests)


class _Witness:
    def __init__(self) -> None:
        self.errors: list[str] = []
        self.digests: dict[str, str] = {}

    def look(self, part: str, read: Callable[[], Any], *, digest: bool = True) -> Any:
        """``read()``, and note either its digest or its error; only ``VaultError`` is an answer."""
        try:
            value = read()
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
            position = self.look(f"{name}", lambda name=name: vault.resolve(name), digest=False)
            self.look(f"{name} log", lambda name=name: list(vault.log(name)))
            for volume in position.volumes if position else ():
                self.look(f"{name}:{volume.name}", lambda n=name, v=volume: _content(vault, n, v))
        for branch in branches:
            self.look(f"{branch.name} reflog", lambda name=branch.name: vault.reflog(name))


def _content(vault: Vault, name: str, volume: Any) -> bytes:
    return bytes(vault.device(name, volume.name).read(0, volume.size))
