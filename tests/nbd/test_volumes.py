"""The volumes of a real vault as exports: heads, moments, differences, throw-away copies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.errors import NotFound, VaultError
from blockvault.nbd.exports import BatchReads, Exports
from blockvault.nbd.volumes import VaultCatalogue
from blockvault.session import Session

BLOCK = 4096
SIZE = 300 * BLOCK + 100


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """main: snapshots "one" (tag v1) and "two"; vda differs in blocks 5 and 200, vdb is new."""
    with Vault.create(tmp_path) as made:
        with made.session("main") as session:
            vda = session.create_volume("vda", SIZE)
            vda.write(0, b"one" * BLOCK)
            session.snapshot("one")
            made.tag("v1")
            session.create_volume("vdb", 10 * BLOCK)
            vda.write(5 * BLOCK, b"x")
            vda.write(200 * BLOCK + 7, b"y")
            session.snapshot("two")
        yield made


@pytest.fixture
def session(vault: Vault) -> Iterator[Session]:
    with vault.session("main") as held:
        yield held


@pytest.fixture
def catalogue(vault: Vault, session: Session) -> VaultCatalogue:
    return VaultCatalogue(vault, {"main": session}, ["v1"])


def read(catalogue: VaultCatalogue, name: str, offset: int, length: int) -> bytes:
    exports = Exports(catalogue)
    export = exports.attach(exports.find(name))
    try:
        return export.device.read(offset, length)
    finally:
        exports.release(export)


def test_listing(catalogue: VaultCatalogue) -> None:
    assert dict(catalogue.listing()) == {
        "main/vda": "head of branch main, writable",
        "main/vdb": "head of branch main, writable",
        "v1/vda": "volume vda of v1, read-only",
    }
    assert catalogue.names() == ["main/vda", "main/vdb", "v1/vda"]


@pytest.mark.parametrize("copy_on_write", [False, True])
def test_reads_come_in_batches_whatever_is_served(
    vault: Vault, session: Session, copy_on_write: bool
) -> None:
    """A device that takes no batches serves a client that has many reads in the air by ones."""
    catalogue = VaultCatalogue(vault, {"main": session}, ["v1"], copy_on_write=copy_on_write)
    for name in catalogue.names():
        device = catalogue.find(name).open()
        assert isinstance(device, BatchReads)
        ranges = [(5 * BLOCK, BLOCK), (0, 2 * BLOCK), (7, 9)]
        found = [
            b"".join(part) if isinstance(part, list) else part for part in device.read_many(ranges)
        ]
        assert found == [device.read(offset, length) for offset, length in ranges]
    catalogue.close()


def test_the_head_is_writable_and_exact_in_size(
    catalogue: VaultCatalogue, session: Session
) -> None:
    volume = catalogue.find("main/vda")
    assert (volume.size, volume.block_size, volume.read_only) == (SIZE, BLOCK, False)
    assert volume.open() is session.device("vda")
    assert catalogue.find("HEAD/vda").name == "main/vda"


@pytest.mark.parametrize(
    ("name", "byte"),
    [("main/vda", b"x"), ("main~0/vda", b"x"), ("main~1/vda", b"\0"), ("v1/vda", b"\0")],
)
def test_revisions(catalogue: VaultCatalogue, name: str, byte: bytes) -> None:
    assert read(catalogue, name, 5 * BLOCK, 1) == byte


def test_moments_and_ids(catalogue: VaultCatalogue, vault: Vault, session: Session) -> None:
    device = session.device("vda")
    device.write(0, b"later")
    device.flush()
    seq = vault.branch("main").seq
    device.write(0, b"still later")
    device.flush()
    assert read(catalogue, f"main@{{#{seq}}}/vda", 0, 5) == b"later"
    assert read(catalogue, "main/vda", 0, 11) == b"still later"
    snapshot = vault.resolve("v1").snapshot
    assert snapshot is not None
    assert read(catalogue, f"{snapshot.hex()[:10]}/vda", 0, 5) == b"oneon"


def test_moments_between_two_flushes(vault: Vault, session: Session) -> None:
    device = session.device("vda")
    device.write(0, b"aaaa")
    device.write(0, b"bbbb")
    device.flush()
    written = [e.seq for e in vault.events("main") if type(e.event).__name__ == "Wrote"][-2:]
    name = f"main@{{#{written[0]}}}/vda"
    assert read(VaultCatalogue(vault, {}, exact=True), name, 0, 4) == b"aaaa"
    assert read(VaultCatalogue(vault, {}), name, 0, 4) == b"oneo"


def test_the_same_state_has_one_canonical_name(catalogue: VaultCatalogue) -> None:
    names = {catalogue.find(f"{rev}/vda").name for rev in ("v1", "main~1", "tags/v1")}
    assert len(names) == 1
    assert read(catalogue, names.pop(), 0, 3) == b"one"
    assert catalogue.find("main/vda").name != catalogue.find("main~0/vda").name


@pytest.mark.parametrize(
    "name", ["", "vda", "/", "main/", "main/vdz", "nobody/vda", "main~99/vda", "a b/c", "v1/vdb"]
)
def test_names_that_are_no_export(catalogue: VaultCatalogue, name: str) -> None:
    with pytest.raises(VaultError) as raised:
        catalogue.find(name)
    assert raised.value.exit_code in (2, 3)


def test_only_names_that_do_not_move_are_settled(catalogue: VaultCatalogue, vault: Vault) -> None:
    snapshot = vault.resolve("v1").snapshot
    assert snapshot is not None
    vault.create_branch("side", "v1")
    with vault.session("side") as session:
        session.device("vda").write(0, b"side")
    moment = vault.resolve("side").canonical
    for name in ("main", "HEAD", "heads/main", snapshot.hex(), snapshot.hex()[:8], moment):
        assert catalogue.find(f"{name}/vda").settled, name
    for name in ("v1", "main~1", "main~0", "side", "main@{now}"):
        assert not catalogue.find(f"{name}/vda").settled, name


def test_the_branch_that_is_written_by_all_its_names(catalogue: VaultCatalogue) -> None:
    for name in ("main/vda", "heads/main/vda", "HEAD/vda", "@/vda", " main/vda"):
        assert catalogue.find(name).name == "main/vda"


def test_a_listed_revision_that_is_gone_hides_no_other(vault: Vault) -> None:
    vault.tag("v2", "main~0")
    catalogue = VaultCatalogue(vault, {}, ["v1", "v2"])
    vault.delete_tag("v1")
    assert catalogue.names() == ["v2/vda", "v2/vdb"]


def test_the_default_is_the_only_one(vault: Vault) -> None:
    assert VaultCatalogue(vault, {}, ["v1"]).find("").read_only
    with pytest.raises(NotFound):
        VaultCatalogue(vault, {}, []).find("")


def test_only_what_is_listed(vault: Vault, session: Session) -> None:
    closed = VaultCatalogue(vault, {"main": session}, ["v1"], only_listed=True)
    assert closed.find("main/vda")
    assert closed.find("v1/vda")
    for name in ("main~1/vda", "main~0/vda"):
        with pytest.raises(NotFound, match="not offered"):
            closed.find(name)


def test_only_what_is_listed_is_compared_with(vault: Vault, session: Session) -> None:
    closed = VaultCatalogue(vault, {"main": session}, ["v1"], only_listed=True)
    for revision, allowed in (("v1", True), ("HEAD", True), ("main~1", False), ("main~0", False)):
        assert (closed.find("main/vda").changes(revision) is not None) == allowed, revision


def test_a_branch_with_a_slash_in_its_name(vault: Vault, session: Session) -> None:
    vault.create_branch("work/fix", "v1")
    catalogue = VaultCatalogue(vault, {"main": session})
    assert read(catalogue, "work/fix/vda", 0, 3) == b"one"


# -- differences -----------------------------------------------------------------------------------


def changed(catalogue: VaultCatalogue, name: str, revision: str) -> list[tuple[int, int]] | None:
    """Byte ranges that differ, from the whole of the volume."""
    volume = catalogue.find(name)
    changes = volume.changes(revision)
    if changes is None:
        return None
    device = volume.open()
    runs = list(changes(device, 0, volume.size))
    place = 0
    for start, length, _ in runs:
        assert start <= place <= start + length
        place = start + length
    assert place >= volume.size
    return [(start, length) for start, length, differs in runs if differs]


def test_differences_take_moments_as_exactly_as_exports(vault: Vault, session: Session) -> None:
    device = session.device("vda")
    device.write(0, b"aaaa")
    device.write(0, b"bbbb")
    device.flush()
    first = [e.seq for e in vault.events("main") if type(e.event).__name__ == "Wrote"][-2]
    moment = f"main@{{#{first}}}"
    assert changed(VaultCatalogue(vault, {}, exact=True), f"{moment}/vda", moment) == []


WANTED = [(5 * BLOCK, BLOCK), (200 * BLOCK, BLOCK)]


@pytest.mark.parametrize(
    ("name", "revision"),
    [("main~0/vda", "v1"), ("v1/vda", "main~0"), ("main/vda", "main~1"), ("v1/vda", "main:vda")],
)
def test_differences(catalogue: VaultCatalogue, name: str, revision: str) -> None:
    assert changed(catalogue, name, revision) == WANTED


def test_no_differences_and_no_such_revision(catalogue: VaultCatalogue) -> None:
    assert changed(catalogue, "main~0/vda", "main") == []
    for revision in ("nobody", "main~9", "v1:vdb", "a b", "", "main:"):
        assert changed(catalogue, "main/vda", revision) is None


def test_differences_of_another_volume(catalogue: VaultCatalogue) -> None:
    found = changed(catalogue, "main/vdb", "main:vda")
    assert found is not None
    assert found[0][0] == 0


@pytest.mark.parametrize("ours", ["main/vdc", "main~0/vdc"])
def test_volumes_have_their_own_writes_since_the_snapshot(vault: Vault, ours: str) -> None:
    """They are looked up by the volume's name in its state, whatever it is compared with."""
    with vault.session("main") as session:
        for name in ("vdc", "vdd"):
            session.create_volume(name, 20 * BLOCK)
        session.snapshot("alike")
        session.device("vdc").write(16 * BLOCK, b"ours")
        session.device("vdd").write(0, b"theirs")
        session.flush()
        catalogue = VaultCatalogue(vault, {"main": session}, ["main~0"])
        own = [(16 * BLOCK, BLOCK)] if ours == "main/vdc" else []
        assert changed(catalogue, ours, "main:vdd") == [(0, BLOCK), *own]


@pytest.mark.parametrize("name", ["main/vda", "main~0/vda", "side/vda", "{moment}/vda"])
@pytest.mark.parametrize("other", ["main", "main~0", "side", "{moment}"])
def test_differences_of_another_volume_are_those_of_the_disks(
    vault: Vault, name: str, other: str
) -> None:
    """Also where what was written since the last snapshot is not in its tree yet."""
    vault.create_branch("side", "main~0")
    with vault.session("side") as session:
        session.device("vda").write(3 * BLOCK, b"side")
        session.device("vdb").write(4 * BLOCK, b"side")
    with vault.session("main") as session:
        session.device("vdb").write(0, b"one" * BLOCK)
        session.snapshot("nearly alike")
        session.device("vdb").write(0, b"y" * BLOCK)
        session.flush()
        moment = vault.resolve("main").canonical
        session.device("vda").write(7 * BLOCK, b"z" * BLOCK)
        session.flush()
        catalogue = VaultCatalogue(vault, {"main": session})
        ours, theirs = name.format(moment=moment), f"{other.format(moment=moment)}/vdb"
        a = read(catalogue, ours, 0, SIZE)
        b = read(catalogue, theirs, 0, 10 * BLOCK).ljust(SIZE, b"\0")
        blocks = [at for at in range(0, SIZE, BLOCK) if a[at : at + BLOCK] != b[at : at + BLOCK]]
        found = changed(catalogue, ours, theirs.replace("/", ":"))
        assert found is not None
        assert [at for start, size in found for at in range(start, start + size, BLOCK)] == blocks


def test_differences_of_a_live_head_follow_it(catalogue: VaultCatalogue, session: Session) -> None:
    volume = catalogue.find("main/vda")
    changes = volume.changes("v1")
    assert changes is not None
    device = session.device("vda")

    def now() -> list[tuple[int, int]]:
        return [run[:2] for run in changes(device, 0, SIZE) if run[2]]

    assert now() == WANTED
    device.write(100 * BLOCK, b"new")
    assert now() == [WANTED[0], (100 * BLOCK, BLOCK), WANTED[1]]
    device.zero(5 * BLOCK, BLOCK)
    assert now() == [(100 * BLOCK, BLOCK), WANTED[1]]


@pytest.mark.parametrize(
    ("offset", "length", "runs"),
    [
        (0, 5 * BLOCK, [(0, 5 * BLOCK, False)]),
        (5 * BLOCK, 10, [(5 * BLOCK, BLOCK, True)]),
        (5 * BLOCK + 9, 10, [(5 * BLOCK, BLOCK, True)]),
        (6 * BLOCK, 10, [(6 * BLOCK, 10, False)]),
        (4 * BLOCK, 3 * BLOCK, [(4 * BLOCK, BLOCK, False), (5 * BLOCK, BLOCK, True),
                                (6 * BLOCK, BLOCK, False)]),
        (201 * BLOCK, 10, [(201 * BLOCK, 10, False)]),
    ],
)  # fmt: skip
def test_parts_of_the_differences(
    catalogue: VaultCatalogue, offset: int, length: int, runs: list[tuple[int, int, bool]]
) -> None:
    volume = catalogue.find("main~0/vda")
    changes = volume.changes("v1")
    assert changes is not None
    assert list(changes(volume.open(), offset, length)) == runs


# -- copy on write ---------------------------------------------------------------------------------


def test_copies_take_writes_and_end_with_the_catalogue(vault: Vault) -> None:
    catalogue = VaultCatalogue(vault, {}, ["v1"], copy_on_write=True)
    exports = Exports(catalogue)
    export = exports.attach(exports.find("v1/vda"))
    assert not export.read_only
    export.device.write(10, b"thrown away")
    exports.release(export)
    again = exports.attach(exports.find("main~1/vda"))
    assert again.device.read(10, 11) == b"thrown away", "the same state is the same copy"
    exports.release(again)
    assert catalogue.find("v1/vda").changes("main") is None
    catalogue.close()
    assert read(VaultCatalogue(vault, {}, ["v1"]), "v1/vda", 10, 3) == (b"one" * 8)[10:13]
