"""The public face of a vault: making, finding, opening; transactions; guards and objects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import blockvault
from blockvault import Vault
from blockvault.errors import BadRequest, Conflict, IOFailed, NotFound, VaultError
from blockvault.journaling import AFTER_FLUSHES
from blockvault.model import events
from blockvault.nbd import control, sockets
from blockvault.nbd.exports import Exports
from blockvault.nbd.serving import Serving
from blockvault.ops import check, export, gc
from blockvault.store.compaction import compact
from blockvault.store.format import BLOCK_SIZES
from blockvault.vault import DIRECTORY
from tests.conftest import skip
from tests.oracle import noise


@pytest.mark.parametrize("known", [False, True])
def test_a_commit_that_changed_nothing_is_no_look_at_what_is_there(
    tmp_path: Path, known: bool
) -> None:
    """Its number goes to the next one, which may be somebody else's: an object has one row."""
    with Vault.create(tmp_path / "numbers") as vault, vault.guard():
        mine, theirs, others = (vault.new_objects() for _ in range(3))
        frames = []
        if known:
            mine.add_node(b"known" * 100)
            frames = mine.finish()
            others.add_node(b"known" * 100)
            with vault.transaction() as transaction:
                transaction.add_frames(others.finish())
        mine.add_node(b"wanted" * 100)
        with vault.transaction() as transaction:
            transaction.add_frames(frames)
        assert transaction.number == 0
        mine.stored(frames, transaction.number)
        with vault.read() as reader:
            before = reader.index_size()
        theirs.add_node(b"wanted" * 100)
        for each in (theirs, mine):
            with vault.transaction() as transaction:
                transaction.add_frames(each.finish())
        with vault.read() as reader:
            assert reader.index_size() == before + 1


def test_a_new_vault_has_an_empty_current_branch(vault: Vault, tmp_path: Path) -> None:
    assert vault.path == tmp_path / ".blockvault"
    assert vault.head == "main"
    assert [branch.name for branch in vault.branches()] == ["main"]
    assert vault.tags() == []
    position = vault.resolve("HEAD")
    assert (position.volumes, position.snapshot, position.tip) == ((), None, None)
    assert [type(logged.event).__name__ for logged in vault.events()] == [
        "Init",
        "BranchCreated",
        "Switched",
    ]


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("compression", ["none", "zstd:3"])
def test_block_sizes_and_compressions(tmp_path: Path, block_size: int, compression: str) -> None:
    size = 40 * block_size + 77
    data = noise(block_size, size // 2) + b"text " * size
    with (
        Vault.create(tmp_path, block_size=block_size, compression=compression) as made,
        made.session() as session,
    ):
        session.create_volume("v", size).write(0, data[:size])
        session.snapshot()
    with Vault.open(tmp_path) as vault:
        assert (vault.options.block_size, vault.options.compression) == (block_size, compression)
        assert vault.open_volume("main~0").read() == data[:size]
        assert check.verify(vault).ok


OPTIONS = [{"block_size": 512}, {"block_size": 5000}, {"compression": "lz4"}, {"compression": "no"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_unknown_parameters_make_no_vault(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(VaultError):
        Vault.create(tmp_path, **options)  # type: ignore[arg-type]
    assert not (tmp_path / ".blockvault").exists()


def test_a_second_vault_in_the_same_place(vault: Vault, tmp_path: Path) -> None:
    with pytest.raises(Conflict) as refused:
        Vault.create(tmp_path)
    assert refused.value.reason == "vault-exists"
    vault.resolve("main")


def test_a_vault_is_found_from_inside(vault: Vault, tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for start in (tmp_path, inner, vault.path):
        assert Vault.discover(start) == vault.path
    with blockvault.open(inner) as again:
        assert again.options == vault.options


def test_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with Vault.create(folder) as made, made.session() as session:
        session.create_volume("v", 4096).write(0, b"there")
    with Vault.open(folder) as vault:
        assert vault.device("main").read(0, 5) == b"there"
        assert check.verify(vault).ok
        export.export(vault, "main", "v", folder / "v.raw")
    compact(folder / DIRECTORY)
    with Vault.open(folder) as vault:
        assert vault.open_volume("main").read() == (folder / "v.raw").read_bytes()


def test_no_vault(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as refused:
        Vault.open(tmp_path)
    assert refused.value.reason == "no-vault"


def test_a_closed_vault_says_so(tmp_path: Path) -> None:
    vault = Vault.create(tmp_path)
    vault.close()
    vault.close()
    with pytest.raises(VaultError) as refused:
        vault.resolve("main")
    assert refused.value.reason == "closed"


def test_a_transaction_is_all_or_nothing(vault: Vault) -> None:
    before = [logged.seq for logged in vault.events()]

    def half() -> None:
        with vault.transaction() as transaction:
            assert transaction.add(events.Switched(branch=vault.branch().id)) == before[-1] + 1
            assert transaction.next_seq == before[-1] + 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    with vault.transaction():
        pass
    assert [logged.seq for logged in vault.events()] == before


def test_objects_are_prepared_under_a_guard(vault: Vault) -> None:
    with pytest.raises(RuntimeError):
        vault.new_objects()
    with vault.guard(), vault.guard():
        vault.new_objects()
    assert not vault.guards.held


def test_two_open_vaults_see_each_other(vault: Vault, tmp_path: Path) -> None:
    with Vault.open(tmp_path) as other:
        with vault.session() as session:
            session.create_volume("v", 10).write(0, b"0123456789")
            session.snapshot("one", author="me")
        assert other.open_volume("main~0").read() == b"0123456789"
        assert next(other.log()).author == "me"
        other.tag("t")
        assert [tag.name for tag in vault.tags()] == ["t"]


def test_a_user_whose_name_is_no_utf8_makes_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "jos\udce9")
    with Vault.create(tmp_path) as vault:
        made = vault.snapshot("one")
    assert made.author == f"jos\N{REPLACEMENT CHARACTER}@{os.uname().nodename}"


def test_splitting_off_a_volume() -> None:
    assert Vault.split("main~1:vda") == ("main~1", "vda")
    assert Vault.split("main@{10:00}") == ("main@{10:00}", None)
    assert Vault.split(":vda") == ("HEAD", "vda")
    with pytest.raises(BadRequest):
        Vault.split("main:")


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A vault with a snapshot, whose files nobody may write."""
    with Vault.create(tmp_path) as made, made.session() as session:
        session.create_volume("v", 4096).write(0, b"kept")
        session.snapshot("kept")
    home = tmp_path / DIRECTORY
    for path in home.iterdir():
        if path.is_file():
            path.chmod(0o400)
    home.chmod(0o500)
    yield tmp_path
    home.chmod(0o700)


def test_a_vault_that_cannot_be_written_can_be_read(unwritable: Path) -> None:
    with Vault.open(unwritable) as vault:
        assert vault.store.readonly
        assert vault.device("main", "v").read(0, 4) == b"kept"
        assert [made.message for made in vault.log()] == ["kept"]
        assert check.verify(vault).problems == []
        for change in (lambda: vault.tag("t"), lambda: vault.create_branch("b"), vault.snapshot):
            with pytest.raises(IOFailed, match="read-only"):
                change()


def test_a_vault_that_cannot_be_written_can_be_served(unwritable: Path) -> None:
    with Vault.open(unwritable) as vault:
        for how in ({"read_only": True}, {"copy_on_write": True}):
            with Serving(vault, ["main"], **how) as serving:
                assert serving.names == ["main/v"]
                assert list(control.statuses(vault.path)) == []
                exports = Exports(serving.catalogue)
                export = exports.attach(exports.find("main/v"))
                assert export.device.read(0, 4) == b"kept"
                if not export.read_only:
                    export.device.write(0, b"copy")
                exports.release(export)


def test_what_root_does_leaves_no_file_that_the_owner_of_a_vault_cannot_use(tmp_path: Path) -> None:
    if os.geteuid():
        skip("only root can give files away")
    Vault.create(tmp_path).close()
    home, owner = tmp_path / DIRECTORY, (1234, 4321)
    (home / "lock.mdb").unlink()
    (home / "head").unlink()
    for path in (home, home / "data.mdb"):
        os.chown(path, *owner)
    with Vault.open(tmp_path) as vault, vault.session() as session:
        disk = session.create_volume("v", 4096)
        for _ in range(2 * AFTER_FLUSHES):
            disk.write(0, b"there")
            disk.flush()
        server = control.ControlServer(home, {})
        exported = sockets.listen_unix(home / "nbd.sock")
        pin = vault.pin("main")
        gc.collect(vault)
        assert {path.name for path in home.iterdir()} >= {"head", "pins", "leases", "journals"}
        assert list((home / "servers").iterdir()) == [server.path]
        assert owners(home) == {owner}
        pin.release()
        server.close()
        exported.close()
    compact(home)
    assert owners(home) == {owner}


def owners(folder: Path) -> set[tuple[int, int]]:
    found = [path.lstat() for path in (folder, *folder.rglob("*"))]
    return {(each.st_uid, each.st_gid) for each in found}
