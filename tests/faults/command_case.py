"""Every command that writes, the vault it runs on, and what may be left when its disk fails.

``build`` makes a small folder with a vault, images and a checkout; each case runs one command on a
copy of it.  ``main`` is what the harness forks: the command line, and ``@write``, a session that
writes and flushes, or with ``@sync`` has its journal promise that.  ``inspector`` looks at a folder
in a child process.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import lmdb

from blockvault import Vault, journaling
from blockvault.cli import main as cli
from blockvault.errors import Damaged, VaultError
from blockvault.model.retention import Policy
from blockvault.ops import checkout, forget, ingest, policy, prune
from blockvault.store import freespace, pages, shared
from blockvault.store import journal as store_journal
from tests.faults import crash_case, story

SIZE = 30 * story.BLOCK

COMMANDS: dict[str, tuple[str, ...]] = {
    "init": ("init", "new"),
    "import": ("import", "image.raw", "--volume", "vda", "-m", "step"),
    "import two": ("import", "image.raw", "other.raw", "-b", "fresh", "-m", "step"),
    "snapshot": ("snapshot", "-m", "step"),
    "snapshot --from": ("snapshot", "--from", "work", "-m", "step"),
    "branch": ("branch", "step", "main~1"),
    "branch -m": ("branch", "-m", "side", "step"),
    "branch -d": ("branch", "-d", "side"),
    "branch --restore": ("branch", "--restore", "gone"),
    "tag": ("tag", "step"),
    "tag -d": ("tag", "-d", "v1"),
    "switch": ("switch", "side"),
    "rollback": ("rollback", "main", "main~1"),
    "checkout": ("checkout", "main~1", "out"),
    "checkout over": ("checkout", "main~1", "work", "--force"),
    "export": ("export", "main:vda", "out.raw", "--sync"),
    "rebuild": ("rebuild", "-V", "broken"),
    "policy set": ("policy", "set", "--keep-last", "3"),
    "hold": ("hold", "main~1", "-m", "step"),
    "unhold": ("unhold", "v1"),
    "prune": ("prune", "--keep-last", "1", "--keep-events", "0"),
    "gc": ("gc", "-V", "dusty"),
    "gc --recompress": ("gc", "-V", "dusty", "--recompress", "5"),
    "compact": ("compact", "-V", "dusty"),
    "repair": ("repair", "-V", "spoilt", "--from", "."),
    "repair of a meta page": ("repair", "-V", "worn"),
    "a session": ("@write",),
    "a session with a journal": ("@sync",),
}

SPARE = ("broken", "dusty", "spoilt", "worn")
"""Vaults for single commands: one that lacks rows, one with much to collect, one with damage that
another copy heals, one that lacks a meta page.
"""

READING = [("log",), ("show", "main"), ("diff", "main~1", "main"), ("events",), ("refs",),
           ("reflog",), ("stats",), ("verify",), ("cat", "main:vda"), ("export", "main:vda", "-"),
           ("checkout", "main", "out", "--dry-run"), ("rebuild", "--dry-run")]  # fmt: skip
"""Commands that must not write to the vault at all."""


class State(NamedTuple):
    """All that a command may change: names and contents, histories, what the table of names has
    besides (holds, policies, ...), and files and vaults beside the vault.
    """

    names: story.Print
    logs: tuple[tuple[str, int], ...]
    keys: tuple[bytes, ...]
    files: tuple[tuple[str, str], ...]


def build(folder: Path) -> None:
    rng = random.Random(1)
    for name in ("image.raw", "other.raw"):
        (folder / name).write_bytes(rng.randbytes(SIZE) + bytes(SIZE))
    with Vault.create(folder) as vault:
        with vault.session() as session:
            session.create_volume("vda", SIZE)
            for at in range(0, SIZE, 3 * story.BLOCK):
                session.device("vda").write(at, rng.randbytes(2 * story.BLOCK))
            session.snapshot("one")
            session.device("vda").write(5000, b"second state" * 700)
            session.snapshot("two")
            session.device("vda").write(9000, b"not yet a snapshot" * 500)
        vault.create_branch("side", "main~1")
        vault.create_branch("gone", "main~1")
        vault.delete_branch("gone")
        vault.tag("v1", "main~1")
        policy.hold(vault, "v1")
        checkout.execute(vault, checkout.plan(vault, "main", folder / "work"))
    for name in SPARE:
        shutil.copytree(folder / ".blockvault", folder / name / ".blockvault")
    damage_tables(folder / "broken/.blockvault")
    gather_dust(folder / "dusty", rng)
    damage_tables(folder / "spoilt/.blockvault")
    damage_frame(folder / "spoilt/.blockvault")
    destroy_meta(folder / "worn/.blockvault")
    with (folder / "work/vda.raw").open("r+b") as file:
        file.seek(3 * story.BLOCK)
        file.write(b"edited outside" * 100)


def gather_dust(path: Path, rng: random.Random) -> None:
    """Write, snapshot and forget, so that some frames are dead, some partly, some whole."""
    with Vault.open(path) as vault:
        with vault.session() as session:
            for number in range(4):
                for at in range(0, SIZE, (2 + number) * story.BLOCK):
                    session.device("vda").write(at, rng.randbytes(story.BLOCK))
                session.snapshot(f"dust {number}")
        forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))


def damage_tables(home: Path) -> None:
    """Take some rows away that a rebuild brings back."""
    with lmdb.open(str(home), max_dbs=32) as env, env.begin(write=True) as txn:
        for name in (b"trail", b"waypoints", b"branches"):
            table = env.open_db(name, txn=txn, create=False)
            for key in list(txn.cursor(db=table).iternext(values=False))[1::2]:
                txn.delete(key, db=table)


def damage_frame(home: Path) -> None:
    """Flip a bit of the longest frame."""
    with lmdb.open(str(home), max_dbs=32) as env, env.begin(write=True) as txn:
        table = env.open_db(b"frames", txn=txn, create=False)
        key, data = max(txn.cursor(db=table), key=lambda row: len(row[1]))
        txn.put(key, data[:-99] + bytes([data[-99] ^ 16]) + data[-98:], db=table)


def destroy_meta(home: Path) -> None:
    """The older one of the two: nothing is lost with it."""
    with (home / shared.DATA).open("r+b") as file:
        metas = [pages.read_meta(file.fileno(), number) for number in (0, 1)]
        older = min(filter(None, metas))
        file.seek(metas.index(older) * older.page_size)
        file.write(b"\xa5" * 512)


def main(arguments: Sequence[str]) -> int:
    freespace._WORTH_BYTES, ingest._LEAST_HOLE = story.BLOCK, 1  # holes in a small vault, too
    if arguments[0] not in ("@write", "@sync"):
        return cli.run(list(arguments))
    try:
        write(journal=arguments[0] == "@sync")
    except VaultError as error:
        print(f"blockvault: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def write(*, journal: bool) -> None:
    journaling.AFTER_FLUSHES, store_journal.HALF = 0 if journal else 1, 16 * story.BLOCK
    with Vault.open() as vault, vault.session() as session:
        device = session.device("vda")
        for step in range(4):
            device.write(step * 5 * story.BLOCK, story.content(1000 + step, 3 * story.BLOCK))
        session.sync()


def inspector() -> Callable[[Path], tuple[str, State]]:
    """For ``Child``: what is wrong in a folder, and the state it is in."""

    def look(folder: Path) -> tuple[str, State]:
        with Vault.open(folder) as vault:
            wrong = crash_case.problems(vault)
            logs = [(b.name, len(list(vault.log(b.name)))) for b in vault.branches() if b.tip]
            with vault.read() as reader:
                keys = [key for key, _ in reader.scan("refs")]
            names = story.look(vault)
        return wrong, State(names, tuple(logs), tuple(keys), tuple(files(folder)))

    return look


def files(folder: Path) -> list[tuple[str, str]]:
    """Complete files that commands make; a new vault counts by being one that opens."""
    found = []
    for path in [*folder.glob("out*/*.raw"), *folder.glob("out.raw"), *folder.glob("work/*.raw")]:
        found.append((str(path.relative_to(folder)), story.hash_of({"": path.read_bytes()})))
    if (folder / "new/.blockvault").exists():
        with Vault.open(folder / "new") as vault:
            found.append(("new", crash_case.problems(vault) or vault.head))
    found += [(name, standing(folder / name)) for name in SPARE if (folder / name).exists()]
    return sorted(found)


def standing(path: Path) -> str:
    """What is wrong with a vault, or what its branch ``main`` is."""
    try:
        with Vault.open(path) as vault:
            return crash_case.problems(vault) or story.look(vault).of("main")
    except Damaged as error:
        return error.reason
