"""States as files: exact, cheap, never over somebody's changes, and whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockvault import Vault
from blockvault.errors import BadRequest, Busy, Conflict, IOFailed, NoSpace, NotFound
from blockvault.ops import (
    attachments,
    checkin,
    checkout,
    copying,
    export,
    forget,
    gc,
    ingest,
    intake,
    manifest,
    prune,
)
from blockvault.ops.policy import Policy
from blockvault.ops.reading import StateDevice
from blockvault.store.objects import ObjectReader
from tests.oracle import BLOCK, noise

SIZE = 50 * BLOCK + 100
Contents = dict[str, bytes]


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """main: snapshots v1 and v2; the later one is shorter in nothing and has a second volume."""
    with Vault.create(tmp_path / "vault") as made:
        with made.session() as session:
            head = session.create_volume("vda", SIZE)
            head.write(0, noise(1, 9 * BLOCK))
            with made.guard():
                session.snapshot("v1", attachments=attachments.keep(made, {"notes": b"v1"}))
            made.tag("v1")
            head.write(3 * BLOCK, noise(2, 100))
            head.zero(7 * BLOCK, BLOCK)
            session.create_volume("vdb", 700).write(0, noise(3, 700))
            session.snapshot("v2")
            made.tag("v2")
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


def go(vault: Vault, rev: str, folder: Path, **options: Any) -> dict[str, str]:
    """Check out; return what became of each file."""
    plan = checkout.execute(vault, checkout.plan(vault, rev, folder, **options))
    return {item.path.name: item.mode for item in plan.items}


def contents(vault: Vault, rev: str) -> Contents:
    position = vault.resolve(rev)
    files = {f"{v.name}.raw": vault.open_volume(rev, v.name).read() for v in position.volumes}
    return files | {a.name: attachments.content(vault, [a], a.name) for a in position.attachments}


def found(folder: Path) -> Contents:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != manifest.FILE_NAME}


def change(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_from_one_version_to_the_other_and_back(vault: Vault, folder: Path) -> None:
    assert go(vault, "v1", folder) == {"vda.raw": "new", "notes": "new"}
    assert found(folder) == contents(vault, "v1")
    assert go(vault, "v2", folder) == {"vda.raw": "update", "vdb.raw": "new", "notes": "remove"}
    assert found(folder) == contents(vault, "v2")
    assert go(vault, "v2", folder) == {"vda.raw": "unchanged", "vdb.raw": "unchanged"}
    go(vault, "v1", folder)
    assert found(folder) == contents(vault, "v1")


def test_only_what_differs_is_written(vault: Vault, folder: Path) -> None:
    go(vault, "v1", folder)
    plan = checkout.plan(vault, "v2", folder)
    item = next(item for item in plan.items if item.name == "vda")
    assert item.extents == ((3 * BLOCK, BLOCK), (7 * BLOCK, BLOCK))
    assert (folder / "vda.raw").stat().st_blocks * 512 <= 10 * BLOCK, "holes stay holes"


def test_some_volumes_leave_the_other_files(vault: Vault, folder: Path) -> None:
    go(vault, "v2", folder)
    assert go(vault, "v1", folder, volumes=["vda"]) == {"vda.raw": "update"}
    assert found(folder) == contents(vault, "v2") | {"vda.raw": contents(vault, "v1")["vda.raw"]}
    with pytest.raises(NotFound):
        go(vault, "v1", folder, volumes=["vdb"])


def test_two_at_once_mix_no_files(vault: Vault, folder: Path) -> None:
    go(vault, "v1", folder)
    one, other = (checkout.plan(vault, rev, folder) for rev in ("v2", "main"))
    checkout.execute(vault, one)
    with pytest.raises(Conflict, match="run it again") as refused:
        checkout.execute(vault, other)
    assert refused.value.reason == "checkout-changed"
    assert found(folder) == contents(vault, "v2")
    with manifest.alone(folder):
        for act in (lambda: go(vault, "v1", folder), lambda: checkin.snapshot_from(vault, folder)):
            with pytest.raises(Busy, match="nothing was changed"):
                act()
    assert found(folder) == contents(vault, "v2")


def test_changes_of_somebody_else_stay(vault: Vault, folder: Path) -> None:
    go(vault, "v1", folder)
    change(folder / "vda.raw", 5, b"mine")
    changed = found(folder)
    for rev in ("v1", "v2"):
        with pytest.raises(Conflict) as refused:
            go(vault, rev, folder)
        assert refused.value.reason == "file-changed"
    assert found(folder) == changed
    assert go(vault, "v2", folder, force=True)["vda.raw"] == "update"
    assert found(folder) == contents(vault, "v2")


def test_a_change_at_the_same_moment_is_seen(vault: Vault, folder: Path) -> None:
    """However coarse the clock of the file system is."""
    for number in range(20):
        go(vault, "v1", folder, force=True)
        change(folder / "vda.raw", 0, bytes([number]))
        with pytest.raises(Conflict):
            checkout.plan(vault, "v1", folder)


def test_a_file_that_nobody_checked_out_stays(vault: Vault, folder: Path) -> None:
    folder.mkdir()
    (folder / "vda.raw").write_bytes(b"mine")
    with pytest.raises(Conflict):
        go(vault, "v1", folder)
    assert found(folder) == {"vda.raw": b"mine"}
    go(vault, "v1", folder, force=True)
    assert found(folder) == contents(vault, "v1")


def test_no_two_things_are_written_into_one_file(vault: Vault, folder: Path) -> None:
    with vault.session() as session, vault.guard():
        kept = attachments.keep(vault, {"vda.raw": b"a file beside the disk"})
        session.snapshot("both", attachments=kept)
    with pytest.raises(Conflict, match="volume 'vda' and attachment 'vda") as refused:
        checkout.plan(vault, "main", folder)
    assert refused.value.reason == "file-exists"
    assert not folder.exists()
    go(vault, "main", folder, volumes=["vda"])
    assert found(folder) == {"vda.raw": vault.open_volume("main", "vda").read()}


@pytest.mark.parametrize("when", ["after the plan", "as it is to be made"])
def test_a_file_that_somebody_makes_meanwhile_stays(
    vault: Vault, folder: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """So does one that only the file system takes for the same, since case is nothing to it."""
    plan, theirs, save = checkout.plan(vault, "v1", folder), folder / "vda.raw", manifest.save

    def late(directory: Path, held: manifest.Manifest) -> None:
        save(directory, held)
        theirs.write_bytes(b"mine")

    folder.mkdir()
    if when == "after the plan":
        theirs.write_bytes(b"mine")
    else:
        monkeypatch.setattr(manifest, "save", late)
    with pytest.raises(Conflict) as refused:
        checkout.execute(vault, plan)
    assert refused.value.reason == "file-exists"
    with pytest.raises(Conflict):
        go(vault, "v1", folder)
    assert found(folder) == {"vda.raw": b"mine"}


@pytest.mark.parametrize("place", ["", "co", "pins/deep/co"])
def test_the_vaults_own_directory_is_no_place_for_files(vault: Vault, place: str) -> None:
    before = sorted(vault.path.rglob("*"))
    with pytest.raises(BadRequest, match="inside the vault"):
        checkout.plan(vault, "main", vault.path / place)
    assert sorted(vault.path.rglob("*")) == before


@pytest.mark.parametrize("start", [None, "v1"])
@pytest.mark.parametrize("target", [None, b"", b"theirs" * BLOCK])
def test_what_a_link_points_to_stays(
    vault: Vault, folder: Path, tmp_path: Path, start: str | None, target: bytes | None
) -> None:
    """In place of a file that was checked out, or of one that never was; dangling or not."""
    outside, link = tmp_path / "outside", folder / "vda.raw"
    folder.mkdir()
    if start:
        go(vault, start, folder)
        link.unlink()
    if target is not None:
        outside.write_bytes(target)
    link.symlink_to(outside)
    with pytest.raises(Conflict, match="symbolic link") as refused:
        go(vault, "v2", folder)
    assert refused.value.reason == "file-changed"
    assert link.is_symlink()
    go(vault, "v2", folder, force=True)
    assert not link.is_symlink()
    assert found(folder) == contents(vault, "v2")
    assert (outside.read_bytes() if outside.exists() else None) == target


def test_a_link_that_comes_after_the_plan_is_not_followed(
    vault: Vault, folder: Path, tmp_path: Path
) -> None:
    go(vault, "v1", folder)
    plan = checkout.plan(vault, "v2", folder)
    (folder / "vda.raw").rename(tmp_path / "outside")
    (folder / "vda.raw").symlink_to(tmp_path / "outside")
    with pytest.raises(IOFailed, match="incomplete"):
        checkout.execute(vault, plan)
    assert (tmp_path / "outside").read_bytes() == contents(vault, "v1")["vda.raw"]


@pytest.mark.parametrize("size", [0, 1, BLOCK, SIZE - 1, SIZE + 1, 3 * SIZE])
def test_a_file_of_another_size_is_made_right(vault: Vault, folder: Path, size: int) -> None:
    go(vault, "v1", folder)
    (folder / "vda.raw").write_bytes(noise(size, size))
    go(vault, "v2", folder, force=True)
    assert found(folder) == contents(vault, "v2")


def test_a_file_that_somebody_made_equal_is_not_taken_for_the_old_one(
    vault: Vault, folder: Path
) -> None:
    go(vault, "v1", folder)
    (folder / "vda.raw").write_bytes(contents(vault, "v2")["vda.raw"])
    assert go(vault, "v2", folder, force=True)["vda.raw"] == "unchanged"
    go(vault, "v1", folder)
    assert found(folder) == contents(vault, "v1")


def test_removal_spares_changes(vault: Vault, folder: Path) -> None:
    go(vault, "v2", folder)
    change(folder / "vdb.raw", 0, b"mine")
    with pytest.raises(Conflict):
        go(vault, "v1", folder)
    go(vault, "v1", folder, force=True)
    assert found(folder) == contents(vault, "v1")


class _Interrupted(Exception):
    pass


@pytest.fixture
def interruption(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """After that many writes the next one is the end of the process."""
    left = [1 << 30]

    def limit(name: str) -> None:
        write = getattr(copying, name)

        def limited(fd: int, offset: int, data: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise _Interrupted
            write(fd, offset, data)

        monkeypatch.setattr(copying, name, limited)

    for name in ("write_at", "write_pieces"):
        limit(name)
    return left


@pytest.mark.parametrize("start", [None, "v1"])
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_an_interrupted_checkout_is_done_again(
    vault: Vault, folder: Path, interruption: list[int], start: str | None, writes: int
) -> None:
    if start:
        go(vault, start, folder)
    interruption[0] = writes
    try:
        go(vault, "v2", folder)
    except _Interrupted:
        with pytest.raises(Conflict) as refused:
            checkin.snapshot_from(vault, folder, branch="main")
        assert refused.value.reason == "file-incomplete"
    else:
        assert writes == 2
    interruption[0] = 1 << 30
    for rev in ("v2", "v1"):
        go(vault, rev, folder)
        assert found(folder) == contents(vault, rev)


def test_a_half_written_file_goes_when_the_other_version_has_none(
    vault: Vault, folder: Path, interruption: list[int]
) -> None:
    go(vault, "v1", folder)
    interruption[0] = 2
    with pytest.raises(_Interrupted):
        go(vault, "v2", folder)
    interruption[0] = 1 << 30
    go(vault, "v1", folder)
    assert found(folder) == contents(vault, "v1")


def test_a_file_is_on_the_disk_before_the_manifest_calls_it_complete(
    vault: Vault, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves one that is not, and nobody would look at it again."""
    fsync, save, synced, complete = os.fsync, manifest.save, set(), []

    def noted(fd: int) -> None:
        fsync(fd)
        synced.add(Path(os.readlink(f"/proc/self/fd/{fd}")).name)

    def looked(directory: Path, held: manifest.Manifest) -> None:
        for entry in held.entries:
            if entry.complete:
                complete.append(entry.file)
                assert entry.file in synced
            else:
                synced.discard(entry.file)
        save(directory, held)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(manifest, "save", looked)
    go(vault, "v1", folder)
    assert go(vault, "v2", folder)["vda.raw"] == "update"
    assert {*complete} == {"vda.raw", "vdb.raw", "notes"}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES])
def test_directories_that_cannot_be_synced_can_be_written_to(
    vault: Vault, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As shared folders of virtual machines have them; what is refused otherwise is told."""
    fsync = os.fsync

    def files_only(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", files_only)
    go(vault, "v1", folder / "deep")
    assert found(folder / "deep") == contents(vault, "v1")
    target = folder / "vda.img"
    export.export(vault, "v1", "vda", target, sync=True)
    assert target.read_bytes() == contents(vault, "v1")["vda.raw"]
    code = errno.EIO
    with pytest.raises(IOFailed, match="Input/output error"):
        go(vault, "v2", folder / "deep")


@pytest.mark.parametrize("start", [None, "v1"])
def test_a_full_disk_is_told(
    vault: Vault, folder: Path, monkeypatch: pytest.MonkeyPatch, start: str | None
) -> None:
    """And what is left then: that some file is incomplete."""

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    if start:
        go(vault, start, folder)
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        patch.setattr("os.pwritev", full)
        with pytest.raises(NoSpace, match="incomplete: run the checkout again"):
            go(vault, "v2", folder)
    go(vault, "v2", folder)
    assert found(folder) == contents(vault, "v2")


def test_only_into_directories_of_this_vault(vault: Vault, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        checkout.plan(vault, "v1", Path(__file__))
    go(vault, "v1", folder)
    with Vault.create(tmp_path / "another") as other, pytest.raises(Conflict) as refused:
        checkout.plan(other, "main", folder)
    assert refused.value.reason == "other-vault"
    for text in ("{", "[" * 100_000):
        (folder / manifest.FILE_NAME).write_text(text)
        with pytest.raises(BadRequest) as unread:
            checkout.plan(vault, "v1", folder)
        assert unread.value.reason == "bad-manifest"


# -- and back ------------------------------------------------------------------------------------


def test_changed_files_become_a_snapshot(vault: Vault, folder: Path) -> None:
    go(vault, "v1", folder)
    change(folder / "vda.raw", 20 * BLOCK - 2, b"across")
    (folder / "vdc.raw").write_bytes(b"new volume")
    expected = found(folder)
    made = checkin.snapshot_from(vault, folder, branch="mine", message="mine")
    assert contents(vault, made.id.hex()) == expected
    assert go(vault, made.id.hex(), folder, volumes=["vda"]) == {"vda.raw": "unchanged"}
    go(vault, "v1", folder)
    assert found(folder) == contents(vault, "v1")


def test_changes_to_a_head_that_has_no_tree_yet(vault: Vault, folder: Path) -> None:
    with vault.session() as session:
        session.device("vda").write(40 * BLOCK, noise(5, 2 * BLOCK))
    go(vault, "main", folder)
    change(folder / "vda.raw", 0, b"mine")
    made = checkin.snapshot_from(vault, folder)
    assert contents(vault, made.id.hex()) == found(folder)
    go(vault, "main~1", folder)
    assert found(folder) == contents(vault, "main~1")


def test_files_that_nobody_wrote_to_are_not_read(
    vault: Vault, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(vault, "main", folder)

    def refuse(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(intake.Intake, "volume", refuse)
    assert contents(vault, checkin.snapshot_from(vault, folder).id.hex()) == found(folder)


def test_a_write_after_the_file_was_read_is_seen_later(
    vault: Vault, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(vault, "main", folder)
    change(folder / "vda.raw", 0, b"read")
    record = ingest.Target.record

    def late(*arguments: Any, **named: Any) -> Any:
        made = record(*arguments, **named)
        change(folder / "vda.raw", 0, b"late")
        return made

    monkeypatch.setattr(ingest.Target, "record", late)
    made = checkin.snapshot_from(vault, folder)
    assert contents(vault, made.id.hex())["vda.raw"].startswith(b"read")
    with pytest.raises(Conflict):
        go(vault, made.id.hex(), folder)


def test_a_missing_file_is_no_deletion(vault: Vault, folder: Path) -> None:
    go(vault, "main", folder)
    (folder / "vdb.raw").unlink()
    with pytest.raises(NotFound):
        checkin.snapshot_from(vault, folder)
    with pytest.raises(NotFound):
        checkin.snapshot_from(vault, folder.parent)


@pytest.mark.parametrize("rev", ["dev", "heads/dev"])
def test_the_branch_that_was_checked_out_is_recorded(vault: Vault, folder: Path, rev: str) -> None:
    vault.create_branch("dev", "main")
    before = vault.branch("main")
    go(vault, rev, folder)
    for number in range(2):
        change(folder / "vdb.raw", number, b"mine")
        made = checkin.snapshot_from(vault, folder)
        assert vault.branch("dev").tip == made.id
        held = manifest.load(folder)
        assert held is not None
        assert (held.branch, held.revision) == ("dev", made.id.hex())
    assert vault.branch("main") == before


def test_head_is_the_branch_that_was_current(vault: Vault, folder: Path) -> None:
    vault.create_branch("dev", "main")
    go(vault, "HEAD", folder)
    vault.switch("dev")
    change(folder / "vdb.raw", 0, b"mine")
    assert checkin.snapshot_from(vault, folder).id == vault.branch("main").tip


@pytest.mark.parametrize("rev", ["v2", "main~0", "main@{0 minutes ago}", "main^0"])
def test_what_is_no_branch_needs_one(vault: Vault, folder: Path, rev: str) -> None:
    go(vault, rev, folder)
    change(folder / "vdb.raw", 0, b"mine")
    before = vault.branch("main")
    with pytest.raises(BadRequest, match="-b NAME") as refused:
        checkin.snapshot_from(vault, folder)
    assert refused.value.reason == "not-a-branch"
    assert vault.branch("main") == before
    made = checkin.snapshot_from(vault, folder, branch="main")
    assert vault.branch("main").tip == made.id
    change(folder / "vdb.raw", 1, b"more")
    assert checkin.snapshot_from(vault, folder).parents == (made.id,)


@pytest.mark.parametrize("fate", ["deleted", "renamed"])
def test_a_branch_that_is_gone_does_not_come_back(vault: Vault, folder: Path, fate: str) -> None:
    vault.create_branch("dev", "main")
    go(vault, "dev", folder)
    change(folder / "vdb.raw", 0, b"mine")
    if fate == "deleted":
        vault.delete_branch("dev")
    else:
        vault.rename_branch("dev", "other")
    with pytest.raises(NotFound, match="deleted or renamed") as refused:
        checkin.snapshot_from(vault, folder)
    assert refused.value.reason == "no-branch"
    assert "dev" not in [branch.name for branch in vault.branches()]
    checkin.snapshot_from(vault, folder, branch="dev")
    assert contents(vault, "dev") == found(folder)


# -- when the branch went on meanwhile -----------------------------------------------------------


def imported(vault: Vault, folder: Path, volume: str, data: bytes) -> None:
    """The branch main goes on: one of its volumes gets another content."""
    image = folder.parent / "image.raw"
    image.write_bytes(data)
    ingest.import_images(vault, [ingest.Image(image, volume)], branch="main")


def settled(vault: Vault, folder: Path) -> None:
    """What the manifest says of the files is true."""
    held = manifest.load(folder)
    assert held is not None
    for entry in held.entries:
        assert entry.unchanged(folder)
    go(vault, "main", folder)
    assert found(folder) == contents(vault, "main")


def test_what_nobody_wrote_to_stays_as_the_branch_has_it(vault: Vault, folder: Path) -> None:
    go(vault, "main", folder)
    imported(vault, folder, "vdb", noise(8, 900))
    change(folder / "vda.raw", 0, b"mine")
    checkin.snapshot_from(vault, folder)
    assert contents(vault, "main") == {
        "vda.raw": (folder / "vda.raw").read_bytes(),
        "vdb.raw": noise(8, 900),
    }
    settled(vault, folder)


def test_the_file_that_stayed_behind_is_a_conflict_when_it_is_changed_later(
    vault: Vault, folder: Path
) -> None:
    go(vault, "main", folder)
    imported(vault, folder, "vdb", noise(8, 700))
    checkin.snapshot_from(vault, folder)
    change(folder / "vdb.raw", 0, b"mine")
    with pytest.raises(Conflict, match="vdb"):
        checkin.snapshot_from(vault, folder)


@pytest.mark.parametrize("size", [SIZE, SIZE - BLOCK, SIZE + BLOCK])
@pytest.mark.parametrize("mine", [b"mine", b""], ids=["written", "emptied"])
def test_two_changes_of_one_volume_are_a_conflict(
    vault: Vault, folder: Path, size: int, mine: bytes
) -> None:
    go(vault, "main", folder)
    imported(vault, folder, "vda", noise(8, size))
    if mine:
        change(folder / "vda.raw", 0, mine)
    else:
        (folder / "vda.raw").write_bytes(b"")
    change(folder / "vdb.raw", 0, b"mine too")
    branch, files = vault.branch("main"), found(folder)
    with pytest.raises(Conflict, match=r"volume 'vda' of branch 'main'.*--force") as refused:
        checkin.snapshot_from(vault, folder)
    assert refused.value.reason == "volume-changed"
    assert (vault.branch("main"), found(folder)) == (branch, files)
    checkin.snapshot_from(vault, folder, force=True)
    assert contents(vault, "main") == files
    settled(vault, folder)


def test_a_write_through_a_server_is_a_change_too(vault: Vault, folder: Path) -> None:
    go(vault, "main", folder)
    with vault.session("main") as session:
        session.device("vda").write(30 * BLOCK, b"theirs")
    change(folder / "vda.raw", 0, b"mine")
    with pytest.raises(Conflict):
        checkin.snapshot_from(vault, folder)
    assert vault.device("main", "vda").read(30 * BLOCK, 6) == b"theirs"


def test_equal_changes_and_mere_touches_are_none(vault: Vault, folder: Path) -> None:
    """A file that was closed without a change, and a snapshot whose manifest was not written."""
    go(vault, "main", folder)
    change(folder / "vda.raw", 0, b"mine")
    imported(vault, folder, "vda", (folder / "vda.raw").read_bytes())
    imported(vault, folder, "vdb", noise(8, 900))
    (folder / "vdb.raw").touch()
    files = found(folder)
    checkin.snapshot_from(vault, folder, force=True)
    assert contents(vault, "main") == files | {"vdb.raw": noise(8, 900)}
    settled(vault, folder)


def test_a_volume_that_was_deleted_meanwhile(vault: Vault, folder: Path) -> None:
    go(vault, "main", folder)
    vault.rollback("main", "v1")
    checkin.snapshot_from(vault, folder)
    assert contents(vault, "main") == contents(vault, "v1")
    change(folder / "vdb.raw", 0, b"mine")
    with pytest.raises(Conflict, match="no longer has the volume 'vdb'"):
        checkin.snapshot_from(vault, folder)
    checkin.snapshot_from(vault, folder, force=True)
    assert contents(vault, "main")["vdb.raw"] == (folder / "vdb.raw").read_bytes()
    assert contents(vault, "main")["vda.raw"] == contents(vault, "v1")["vda.raw"]


def test_a_new_file_takes_no_name_that_the_branch_has(vault: Vault, folder: Path) -> None:
    go(vault, "main", folder, volumes=["vda"])
    (folder / "vdb.raw").write_bytes(b"another disk")
    with pytest.raises(Conflict, match="was not checked out"):
        checkin.snapshot_from(vault, folder)
    (folder / "vdb.raw").rename(folder / "vdc.raw")
    checkin.snapshot_from(vault, folder)
    assert set(contents(vault, "main")) == {"vda.raw", "vdb.raw", "vdc.raw"}


def test_an_attachment_is_not_collected_while_it_is_written(
    vault: Vault, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with vault.session() as session, vault.guard():
        session.snapshot("with its own", attachments=attachments.keep(vault, {"notes": b"v3"}))
    plan, copy = checkout.plan(vault, "v1", folder), copying.copy_out

    def later(device: StateDevice, *arguments: Any) -> None:
        if device.name == "notes":
            forget.execute(vault, prune.plan(vault, Policy(last=1, events=0, tags=())))
            gc.collect(vault, wait=0)
        copy(device, *arguments)

    monkeypatch.setattr(copying, "copy_out", later)
    monkeypatch.setattr(vault, "objects", ObjectReader(vault.store, cache_bytes=1))
    checkout.execute(vault, plan)
    assert (folder / "notes").read_bytes() == b"v1"
    with pytest.raises(NotFound):
        vault.resolve("v1")


def test_attachments_follow_the_same_rule(vault: Vault, folder: Path) -> None:
    vault.create_branch("old", "v1")
    go(vault, "old", folder)
    (folder / "vda.raw").touch()
    checkin.snapshot_from(vault, folder)
    assert contents(vault, "old") == found(folder), "with the notes"
    change(folder / "notes", 0, b"V")
    checkin.snapshot_from(vault, folder)
    assert contents(vault, "old") == found(folder)
    with vault.session("old") as session:
        session.snapshot("without notes")
    change(folder / "vda.raw", 1, b"mine")
    checkin.snapshot_from(vault, folder)
    assert set(contents(vault, "old")) == {"vda.raw"}
    change(folder / "notes", 0, b"W")
    with pytest.raises(Conflict, match="attachment 'notes'"):
        checkin.snapshot_from(vault, folder)
    checkin.snapshot_from(vault, folder, force=True)
    assert contents(vault, "old") == found(folder)


@pytest.mark.parametrize("branch", [None, "beside"])
def test_no_memory_stays_beside_another_disk(
    vault: Vault, folder: Path, branch: str | None
) -> None:
    """A machine must not go on from memory that belongs to another disk."""
    with vault.session() as session, vault.guard():
        files = {"memory": b"pages", "notes": b"v3"}
        session.snapshot("as it runs", attachments=attachments.keep(vault, files))
    go(vault, "main", folder)
    change(folder / "notes", 0, b"V")
    (folder / "memory").touch()
    checkin.snapshot_from(vault, folder, branch=branch)
    assert contents(vault, branch or "main") == found(folder), "the same disks"
    change(folder / "vdb.raw", 0, b"another disk")
    change(folder / "notes", 1, b"4")
    (folder / "memory").touch()
    checkin.snapshot_from(vault, folder, branch=branch and "another")
    files = found(folder)
    del files["memory"]
    assert contents(vault, "another" if branch else "main") == files
    checkin.snapshot_from(vault, folder, branch="later")
    assert contents(vault, "later") == files, "nor later: the manifest knows"


def test_memory_of_a_disk_that_was_checked_out_anew_does_not_become_a_branch(
    vault: Vault, folder: Path
) -> None:
    with vault.session() as session, vault.guard():
        session.device("vda").write(0, b"as it runs")
        files = {"memory": b"pages", "notes": b"v3"}
        session.snapshot("as it runs", attachments=attachments.keep(vault, files))
    go(vault, "main", folder)
    go(vault, "v1", folder, volumes=["vda"])
    checkin.snapshot_from(vault, folder, branch="mixed")
    assert set(contents(vault, "mixed")) == {"vda.raw", "vdb.raw", "notes"}
    assert set(found(folder)) == {"vda.raw", "vdb.raw", "notes", "memory"}


def test_memory_of_disks_that_nobody_changed_stays_though_their_snapshot_is_pruned(
    vault: Vault, folder: Path
) -> None:
    with vault.session() as session:
        session.device("vda").write(0, b"as it runs")
        with vault.guard():
            files = {"memory": b"pages", "notes": b"v3"}
            gone = session.snapshot("as it runs", attachments=attachments.keep(vault, files))
        go(vault, "main", folder)
        session.device("vda").write(0, b"as it runs later")
        with vault.guard():
            notes = attachments.keep(vault, {"notes": b"v4"})
            session.snapshot("later", attachments=notes)
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
    with pytest.raises(NotFound):
        vault.get_snapshot(gone.id)
    checkin.snapshot_from(vault, folder, branch="beside")
    assert contents(vault, "beside") == found(folder)
    assert "memory" in found(folder)


def test_what_an_interrupted_checkout_left_is_not_of_the_snapshot_that_it_began(
    vault: Vault, folder: Path, interruption: list[int]
) -> None:
    with vault.guard(), vault.session() as session:
        session.device("vda").write(0, b"as it runs")
        session.snapshot("as it runs", attachments=attachments.keep(vault, {"memory": b"pages"}))
    go(vault, "main", folder)
    interruption[0] = 0
    with pytest.raises(_Interrupted):
        go(vault, "v2", folder)
    interruption[0] = 1 << 30
    go(vault, "v2", folder, volumes=["vda"])
    checkin.snapshot_from(vault, folder, branch="mixed")
    assert "memory" in found(folder)
    assert "memory" not in contents(vault, "mixed")


def test_a_new_branch_gets_all_the_files(vault: Vault, folder: Path) -> None:
    with vault.session("main") as session:
        session.device("vda").write(40 * BLOCK, noise(5, BLOCK))  # a tree that is not stored yet
    go(vault, "main", folder)
    checkin.snapshot_from(vault, folder, branch="beside")
    assert contents(vault, "beside") == contents(vault, "main") == found(folder)


def test_the_files_of_another_vault_are_not_taken(
    vault: Vault, folder: Path, tmp_path: Path
) -> None:
    go(vault, "main", folder)
    with Vault.create(tmp_path / "another") as other, pytest.raises(Conflict) as refused:
        checkin.snapshot_from(other, folder, branch="main")
    assert refused.value.reason == "other-vault"
