"""A small vault in which everything happens once, and a second account of what it must hold.

The account is kept in plain bytearrays beside the vault, so it says what every state reads as
without asking the program.  ``make`` freezes a told story into a fixture; the tests of the format
tell it anew.  Clock, ids and names are fixed: the same program makes the same log.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from blake3 import blake3

from blockvault import Vault
from blockvault.model import events, retention
from blockvault.ops import attachments, gc, ingest, policy, prune
from blockvault.ops import forget as forgetting
from blockvault.session import Session

START_US = 1_700_000_000_000_000
TICK_US = 250_000
AUTHOR = "golden@example"

Contents = dict[str, bytes]
"""Volume name -> every byte of it."""


class Told:
    """What a story promises: contents by revision, and by event for the branch ``main``."""

    def __init__(self) -> None:
        self.revisions: dict[str, Contents] = {}
        self.moments: dict[int, Contents] = {}


def noise(seed: str, length: int) -> bytes:
    """Bytes that no codec makes smaller, the same in every run."""
    return blake3(seed.encode()).digest(length)


@contextmanager
def fixed_world() -> Iterator[None]:
    """A clock that ticks, and a vault id that is known."""
    now = [START_US]

    def tick() -> int:
        now[0] += TICK_US
        return now[0]

    with (
        mock.patch.object(events, "now_us", tick),
        mock.patch("os.urandom", lambda count: bytes(range(count))),
        mock.patch("blockvault.vault.default_author", return_value=AUTHOR),
    ):
        yield


@contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Work in ``directory``, so that the names of images in the log are the same everywhere."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


class Disk:
    """One volume of a session, and the bytearray that says what it must read as."""

    def __init__(self, session: Session, name: str, data: bytearray) -> None:
        self.device = session.device(name)
        self.data = data

    def write(self, offset: int, data: bytes) -> None:
        self.device.write(offset, data)
        self.data[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.device.zero(offset, length)
        self.data[offset : offset + length] = bytes(length)

    def trim(self, offset: int, length: int) -> None:
        """Whole blocks only, so that what it must read as is plain."""
        self.device.trim(offset, length)
        self.data[offset : offset + length] = bytes(length)


def tell_tiny(home: Path) -> Vault:
    """The worked example of docs/format.md: one block written, one snapshot, one more write."""
    vault = Vault.create(home)
    with vault.session("main") as session:
        disk = session.create_volume("vda", 10_000)
        disk.write(0, b"first" * 100)
        session.snapshot("one")
        disk.write(4096 + 8, b"later")
    return vault


def tell(home: Path, *, block_size: int = 4096, compression: str = "zstd:3") -> tuple[Vault, Told]:
    """Every kind of event, several tree heights, raw and compressed frames."""
    vault = Vault.create(home, block_size=block_size, compression=compression)
    told, held = Told(), {"vda": bytearray(300_001)}

    def now() -> Contents:
        return {name: bytes(data) for name, data in held.items()}

    def moment(session: Session) -> None:
        session.flush()
        told.moments[vault.branch("main").seq] = now()

    with vault.session("main") as session:
        session.create_volume("vda", 300_001)
        _first_writes(session, held, moment)
        files = {"machine.json": b'{"cpus": 2}\n', "empty.bin": bytes(9)}
        with vault.guard():
            session.snapshot("one", attachments=attachments.keep(vault, files))
        told.revisions["main~0"] = now()
        held["vdb"] = bytearray(1300 * block_size)
        session.create_volume("vdb", 1300 * block_size)
        _more_writes(session, held, moment, block_size)
        session.checkpoint()
        session.snapshot("two")
    told.revisions["main~1"], told.revisions["main~0"] = told.revisions["main~0"], now()
    _names(vault, told)
    _import(vault, home, told)
    with vault.session("main") as session:
        _writes_after_rollback(session, held, moment)
    told.revisions["main"] = now()
    return vault, told


def _first_writes(session: Session, held: dict[str, bytearray], moment: object) -> None:
    assert callable(moment)
    disk = Disk(session, "vda", held["vda"])
    disk.write(0, noise("boot", 512))
    disk.write(9_000, b"across two blocks " * 500)
    moment(session)
    disk.write(299_000, b"the last, partly filled block"[:1001])
    moment(session)
    disk.write(65_536, noise("incompressible", 16_384))
    moment(session)
    disk.zero(70_000, 20_000)
    moment(session)


def _more_writes(
    session: Session, held: dict[str, bytearray], moment: object, block_size: int
) -> None:
    assert callable(moment)
    disk, big = Disk(session, "vda", held["vda"]), Disk(session, "vdb", held["vdb"])
    for block in (0, 31, 32, 1023, 1024, 1299):
        big.write(block * block_size, f"block {block} ".encode() * 40)
    session.commit(barrier=False)
    big.write(64 * block_size, b"one block, often" * (block_size // 16) * 40)
    moment(session)
    disk.trim(block_size, 2 * block_size)
    disk.write(10, b"overwritten")
    moment(session)
    big.zero(0, 1200 * block_size)
    moment(session)
    big.write(5 * block_size, b"after the long zero")
    moment(session)


def _names(vault: Vault, told: Told) -> None:
    """Branches, tags and HEAD; the state of main stays."""
    vault.create_branch("old", "main~1")
    told.revisions["old"] = told.revisions["main~1"]
    vault.rename_branch("old", "older")
    told.revisions["older"] = told.revisions.pop("old")
    vault.switch("older")
    with vault.session("older") as session:
        data = bytearray(told.revisions["older"]["vda"])
        Disk(session, "vda", data).write(100_000, b"on another branch")
    told.revisions["older"] = {**told.revisions["older"], "vda": bytes(data)}
    vault.tag("v1", "main~1")
    told.revisions["v1"] = told.revisions["main~1"]
    vault.tag("of-a-head", "older")
    told.revisions["of-a-head"] = told.revisions["older"]
    vault.tag("gone", "main")
    vault.delete_tag("gone")
    vault.create_branch("spare", "main")
    vault.delete_branch("spare")
    vault.restore_branch("spare")
    told.revisions["spare"] = told.revisions["main~0"]
    vault.switch("main")
    _keep(vault, "main~0", "main~1")


def _keep(vault: Vault, held: str, let_go: str) -> None:
    """What a prune is to keep."""
    rules = retention.Policy(last=2, weekly=4, tags=("v*", "of-*", "two"), events=3600 * 1_000_000)
    ids = [vault.resolve(rev).snapshot for rev in (held, let_go)]
    with vault.transaction() as transaction:
        for oid in ids:
            assert oid is not None
            transaction.add(events.Held(snapshot=oid, text="until the audit"))
        transaction.add(events.Unheld(snapshot=ids[1] or b""))
    policy.set_policy(vault, "main", rules)
    policy.set_policy(vault, None, rules)
    policy.set_policy(vault, None, None)


def forget(vault: Vault, told: Told) -> Told:
    """Prune all that no name needs and no head stands on, and collect it."""
    vault.delete_branch("spare")
    # The clock of the fixture did not tick for a plan, which looks at it and records nothing.
    with mock.patch.object(events, "now_us", return_value=1 << 60):
        planned = prune.plan(vault, retention.Policy(last=1, events=0))
    assert planned.forgotten or planned.cuts
    forgetting.execute(vault, planned)
    data = bytearray(told.revisions["main"]["vda"])
    left = Told()
    with vault.session("main") as session:
        Disk(session, "vda", data).write(8_000, b"after the prune")
        session.flush()
        left.moments[vault.branch("main").seq] = {"vda": bytes(data)}
    assert gc.collect(vault).complete
    named = ("main~0", "older", "imported", "v1", "of-a-head", "two")
    left.revisions = {rev: told.revisions[rev] for rev in named}
    left.revisions["main"] = {"vda": bytes(data)}
    return left


def _import(vault: Vault, home: Path, told: Told) -> None:
    """An image into a new branch, then main back to where it was at its first snapshot."""
    image = noise("image", 10_000) + bytes(1 << 20) + b"end of the image" * 99
    (home / "image.raw").write_bytes(image)
    with inside(home):
        ingest.import_images(
            vault, [ingest.Image(Path("image.raw"), "disk")], branch="imported", message="an image"
        )
    told.revisions["imported"] = {"disk": image}
    two = told.revisions["main~0"]
    vault.rollback("main", "main~1")
    told.revisions["main~0"] = told.revisions.pop("main~1")
    told.moments[vault.resolve("main").seq] = told.revisions["main~0"]
    vault.tag("two", f"main@{{#{vault.branch('main').seq - 1}}}")
    told.revisions["two"] = two


def _writes_after_rollback(session: Session, held: dict[str, bytearray], moment: object) -> None:
    assert callable(moment)
    vault = session.vault
    del held["vdb"]
    held["vda"][:] = vault.open_volume("v1", "vda").read()
    disk = Disk(session, "vda", held["vda"])
    disk.write(200_000, b"not yet in any snapshot")
    moment(session)
    disk.write(4_000, noise("tail", 5_000))
    moment(session)
