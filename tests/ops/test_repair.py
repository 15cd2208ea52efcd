"""repair: what it brings back and from where, and that what stays lost is never read as data."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockvault import pins
from blockvault.errors import BadRequest, Busy, Damaged
from blockvault.ids import object_id
from blockvault.model import tree
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import attachments, check, gc, ingest, rebuild, repair
from blockvault.ops.report import Report
from blockvault.store import frames, pages, salvage, shared, tables
from blockvault.store.codec import Codec
from blockvault.vault import Vault

BLOCK = 4096
COUNT = 80


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(BLOCK)


CONTENT = b"".join(noise(number) for number in range(COUNT))


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """A vault with one snapshot, and a copy of it beside."""
    home = tmp_path / "one"
    with Vault.create(home) as vault, vault.session("main") as session:
        session.create_volume("vda", COUNT * BLOCK).write(0, CONTENT)
        session.snapshot("all")
    shutil.copytree(home, tmp_path / "copy")
    with Vault.open(home) as vault:
        yield vault


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy"


def read(vault: Vault) -> bytes:
    vault.objects.close()
    return vault.device("main~0", "vda").read(0, COUNT * BLOCK)


def spoil(vault: Vault, number: int, at: int) -> None:
    """Flip a bit of a frame."""
    with vault.store.write() as writer:
        frame = bytearray(writer.frame(number) or b"")
        frame[at] ^= 16
        writer._txn.put(tables.integer_key(number), bytes(frame), db=writer._dbs["frames"])
    vault.objects.close()


def place(vault: Vault, oid: bytes) -> tuple[int, int]:
    with vault.read() as reader:
        found = reader.locate([oid])[0]
    assert found is not None
    return tables.split_location(found)


def sound(vault: Vault) -> None:
    assert check.verify(vault).problems == []
    assert rebuild.rebuild(vault, dry_run=True).changed_rows == 0


def test_a_sound_vault_needs_nothing(vault: Vault, copy: Path) -> None:
    made = repair.plan(vault, [copy])
    assert made.sound
    assert (made.found, made.lost) == ({}, frozenset())


def damage_block(vault: Vault) -> None:
    number, slot = place(vault, object_id(noise(7)))
    spoil(vault, number, 200 + slot * BLOCK)


def damage_header(vault: Vault) -> None:
    number, _ = place(vault, object_id(noise(7)))
    spoil(vault, number, 0)


def damage_root(vault: Vault) -> None:
    number, _ = place(vault, vault.resolve("main").volumes[0].root)
    spoil(vault, number, 0)


def lose_block(vault: Vault) -> None:
    with vault.store.write() as writer:
        number, _ = place(vault, object_id(noise(7)))
        writer.unindex([object_id(noise(n)) for n in (7, 8)])
        writer.drop_frames([number])


def lose_snapshot(vault: Vault) -> None:
    tip = vault.resolve("main").tip
    number, _ = place(vault, tip)
    with vault.store.write() as writer:
        writer.unindex([tip])
        writer.drop_frames([number])
    vault.objects.close()


DAMAGES = [damage_block, damage_header, damage_root, lose_block, lose_snapshot]


@pytest.mark.parametrize("harm", DAMAGES)
def test_another_vault_brings_everything_back(vault: Vault, copy: Path, harm) -> None:
    harm(vault)
    assert not check.verify(vault).ok
    made = repair.plan(vault, [copy])
    assert made.lost == frozenset()
    assert made.sources[str(copy)] == len(made.found) > 0
    assert not check.verify(vault).ok, "a plan changes nothing"
    done = repair.execute(vault, made)
    assert done.restored == len(made.found)
    assert read(vault) == CONTENT
    sound(vault)


def test_beside_a_collection_nothing_is_changed(vault: Vault, copy: Path) -> None:
    damage_block(vault)
    made = repair.plan(vault, [copy])
    with pins.sole(vault.path, "gc"), pytest.raises(Busy, match="is doing gc, or"):
        repair.execute(vault, made)
    with pytest.raises(Damaged):
        read(vault)
    repair.execute(vault, made)
    sound(vault)


def test_beside_a_collection_it_does_not_even_look(
    vault: Vault, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "verify", lambda *_, **__: pytest.fail("it looks"))
    with pins.sole(vault.path, "gc"), pytest.raises(Busy):
        repair.repair(vault, [copy])


def test_no_collection_begins_while_it_looks(
    vault: Vault, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_block(vault)
    verify = check.verify

    def beside(*arguments: Any, **named: Any) -> Report:
        with pytest.raises(Busy):
            gc.collect(vault)
        return verify(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(check, "verify", beside)
        made, done = repair.repair(vault, [copy])
    assert done is not None
    assert done.restored == len(made.found) > 0
    sound(vault)
    assert repair.repair(vault) == (repair.plan(vault), None)


@pytest.mark.parametrize("harm", [damage_block, damage_header])
def test_an_image_brings_blocks_back_wherever_they_lie_in_it(
    vault: Vault, tmp_path: Path, harm
) -> None:
    image = tmp_path / "disk.img"
    blocks = [noise(number) for number in range(COUNT)]
    image.write_bytes(bytes(BLOCK) * 3 + b"".join(reversed(blocks)))
    harm(vault)
    made = repair.plan(vault, [image])
    assert made.lost == frozenset()
    repair.execute(vault, made)
    assert read(vault) == CONTENT
    sound(vault)


@pytest.mark.parametrize("image_first", [True, False])
def test_sources_have_together_what_none_of_them_has(tmp_path: Path, image_first: bool) -> None:
    """One has the nodes, the other the blocks that only these nodes name."""
    image, home, copy = tmp_path / "disk.img", tmp_path / "one", tmp_path / "copy"
    image.write_bytes(CONTENT)
    with Vault.create(home) as vault:
        ingest.import_images(vault, [ingest.Image(image, "vda")])
    shutil.copytree(home, copy)
    with Vault.open(copy) as other:
        lose_block(other)
    with Vault.open(home) as vault:
        lose_block(vault)
        damage_root(vault)
        unseen = {object_id(noise(7)), object_id(noise(8))}
        assert not check.verify(vault).lost & unseen
        made = repair.plan(vault, [image, copy] if image_first else [copy, image])
        assert made.lost == frozenset()
        assert {made.found[oid] for oid in unseen} == {image}
        assert sum(made.sources.values()) == len(made.found)
        repair.execute(vault, made)
        assert read(vault) == CONTENT
        sound(vault)


def lose(vault: Vault, oid: bytes) -> None:
    """Nothing is left of an object; what shared its frame is in others."""
    number, _ = place(vault, oid)
    with vault.store.write() as writer:
        for each in frames.decode(writer.frame(number) or b""):
            if object_id(each) != oid:
                alone = frames.encode([each], Codec("none"))
                writer.move_frames([frames.Frame(alone, (object_id(each),))])
        writer.unindex([oid])
        writer.drop_frames([number])
    vault.objects.close()


@pytest.mark.parametrize(
    "names", ["snapshot root block", "snapshot block", "root node block", "root block"]
)
def test_what_only_lost_objects_name_is_looked_for_too(
    vault: Vault, tmp_path: Path, names: str
) -> None:
    memory = b"".join(noise(1000 + number) for number in range(1100))
    with vault.session() as session, vault.guard():
        kept = attachments.keep(vault, {"memory": memory})
        made = session.snapshot("as it runs", attachments=kept)
    shutil.copytree(tmp_path / "one", tmp_path / "later")
    root = kept[0].root
    node = tree.children(vault.objects.get(root))[0]
    ids = {"snapshot": made.id, "root": root, "node": node, "block": object_id(noise(1040))}
    lost = [ids[name] for name in names.split()]
    for oid in reversed(lost):
        lose(vault, oid)
    assert check.verify(vault).lost == {lost[0]}
    found = repair.plan(vault, [tmp_path / "later"])
    assert found.found.keys() == set(lost)
    assert found.lost == frozenset()
    repair.execute(vault, found)
    assert attachments.content(vault, made.attachments, "memory") == memory
    sound(vault)


def test_a_guests_block_that_looks_like_a_snapshot_names_nothing(
    vault: Vault, tmp_path: Path
) -> None:
    named = (Volume("vda", BLOCK, object_id(b"what nobody has")),)
    empty = len(Snapshot(parents=(), volumes=named, message="x" * 1000).encode()) - 1000
    block = Snapshot(parents=(), volumes=named, message="x" * (BLOCK - empty)).encode()
    assert len(block) == BLOCK
    with vault.session() as session:
        session.device("vda").write(3 * BLOCK, block)
        session.snapshot("as the guest wants")
    shutil.copytree(tmp_path / "one", tmp_path / "later")
    lose(vault, object_id(block))
    found = repair.plan(vault, [tmp_path / "later"])
    assert found.found.keys() >= {object_id(block)}
    assert found.lost == frozenset()


@pytest.mark.parametrize("kind", ["vault", "image"])
def test_what_is_brought_back_is_not_all_in_memory(
    vault: Vault, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(CONTENT * 2)
    lose_block(vault)
    made = repair.plan(vault, [copy if kind == "vault" else image])
    assert made.lost == frozenset()
    held = most = 0
    name = f"_from_{kind}"
    give, store = getattr(repair, name), repair._store

    def giving(*arguments: object) -> Iterator[repair.Pair]:
        nonlocal held, most
        for pair in give(*arguments):
            held += 1
            most = max(most, held)
            yield pair

    def storing(vault: Vault, pairs: list[repair.Pair]) -> None:
        nonlocal held
        store(vault, pairs)
        held -= len(pairs)

    monkeypatch.setattr(repair, "_STORED_AT_ONCE", 5)
    monkeypatch.setattr(repair, name, giving)
    monkeypatch.setattr(repair, "_store", storing)
    assert repair.execute(vault, made).restored == len(made.found) > 20
    assert (held, most) == (0, 5)
    assert read(vault) == CONTENT
    sound(vault)


def test_what_a_source_has_no_more_is_lost(vault: Vault, copy: Path) -> None:
    damage_block(vault)
    made = repair.plan(vault, [copy])
    assert made.lost == frozenset()
    with Vault.open(copy) as other:
        damage_block(other)
    done = repair.execute(vault, made)
    assert made.lost == {object_id(noise(7))}
    assert (done.restored, done.quarantined) == (0, 1)
    with pytest.raises(Damaged):
        read(vault)


def test_what_cannot_be_found_is_told_and_never_read_wrong(vault: Vault) -> None:
    damage_block(vault)
    made = repair.plan(vault)
    assert made.lost == {object_id(noise(7))}
    assert {(t.offset, t.length) for t in made.touched} == {(7 * BLOCK, BLOCK)}
    assert repair.execute(vault, made).quarantined == 1
    with pytest.raises(Damaged):
        read(vault)
    device = vault.device("main~0", "vda")
    assert device.read(0, 7 * BLOCK) == CONTENT[: 7 * BLOCK]
    assert device.read(8 * BLOCK, BLOCK) == noise(8)
    kinds = {problem.kind for problem in check.verify(vault).problems}
    assert kinds == {"object-missing"}


def test_content_that_is_written_again_heals_what_was_lost(vault: Vault) -> None:
    damage_block(vault)
    repair.execute(vault, repair.plan(vault))
    with vault.session("main") as session:
        session.device("vda").write(40 * BLOCK, noise(7))
    assert read(vault) == CONTENT
    sound(vault)


def test_index_and_projections_are_mended(vault: Vault) -> None:
    with vault.store.write() as writer:
        writer.delete("refs", b"HEAD")
        writer.unindex([object_id(noise(3))])
    done = repair.execute(vault, repair.plan(vault))
    assert (done.rows, done.index_entries, done.quarantined) == (1, 1, 0)
    assert read(vault) == CONTENT
    sound(vault)


def flipped_key(vault: Vault, table: str) -> None:
    """One bit of a key is another, so that the row stands at a place where nobody looks."""
    with vault.store.write() as writer:
        cursor = writer._txn.cursor(writer._dbs[table])
        cursor.last()
        key, stored = bytes(cursor.key()), bytes(cursor.value())
        cursor.delete()
        writer._txn.put(key[:-1] + bytes([key[-1] ^ 64]), stored, db=writer._dbs[table])


@pytest.mark.parametrize("table", ["refs", "branches", "waypoints", "trail", "snapshots", "runs"])
def test_a_row_under_another_key_is_mended(vault: Vault, table: str) -> None:
    if table == "runs":
        with vault.store.write() as writer:
            writer.put("runs", bytes(32), bytes(32))
    flipped_key(vault, table)
    assert not check.verify(vault).ok
    made = repair.plan(vault)
    assert (made.lost, made.broken_log) == (frozenset(), "")
    repair.execute(vault, made)
    assert read(vault) == CONTENT
    sound(vault)


def test_damaged_notes_of_a_collection_are_dropped(vault: Vault) -> None:
    with vault.store.write() as writer:
        writer.set_dead(1, 3)
    flipped_key(vault, "dead")
    assert {problem.kind for problem in check.verify(vault).problems} == {"row-damaged"}
    repair.execute(vault, repair.plan(vault))
    sound(vault)


def test_an_entry_of_the_index_under_another_id_is_no_loss(vault: Vault) -> None:
    oid = object_id(noise(7))
    where = place(vault, oid)
    with vault.store.write() as writer:
        writer.unindex([oid])
        wrong = oid[:-1] + bytes([oid[-1] ^ 1])
        writer.put("index", wrong, tables.pack_location(tables.location(*where)))
    vault.objects.close()
    assert {p.kind for p in check.verify(vault).problems} == {"object-missing", "index-differs"}
    made = repair.plan(vault)
    assert (made.lost, made.touched) == (frozenset(), ())
    assert repair.execute(vault, made).index_entries == 2
    assert read(vault) == CONTENT
    sound(vault)


def test_a_hole_in_the_log_is_told_and_nothing_is_made_worse(vault: Vault) -> None:
    with vault.store.write() as writer:
        key = tables.integer_key(vault.resolve("main").seq)
        data = bytearray(writer._txn.get(key, db=writer._dbs["log"]))
        data[70] ^= 4
        writer._txn.put(key, bytes(data), db=writer._dbs["log"])
    made = repair.plan(vault)
    assert "does not continue" in made.broken_log
    done = repair.execute(vault, made)
    assert (done.rows, done.index_entries) == (0, 0)
    assert read(vault) == CONTENT


def test_a_source_with_other_content_helps_nothing(vault: Vault, tmp_path: Path) -> None:
    image = tmp_path / "wrong.img"
    image.write_bytes(noise(12345) * 4)
    damage_block(vault)
    assert repair.plan(vault, [image]).lost
    with pytest.raises(BadRequest, match="neither"):
        repair.plan(vault, [tmp_path])
    with pytest.raises(BadRequest, match="to be repaired"):
        repair.plan(vault, [vault.path])
    assert len(shared._registry) == 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_destroyed_meta_page_is_written_anew(vault: Vault, number: int) -> None:
    path = vault.path
    vault.close()
    with open(path / shared.DATA, "r+b") as file:
        metas = [pages.read_meta(file.fileno(), each) for each in (0, 1)]
        newest = max((0, 1), key=lambda each: metas[each].txn_id)
        file.seek(number * 4096)
        file.write(b"\xa5" * 512)
    assert salvage.damaged_meta(path) == number
    with pytest.raises(Damaged, match="blockvault repair"):
        Vault.open(path)
    assert salvage.rescue_meta(path)
    assert not salvage.rescue_meta(path)
    kept = path / f"meta-{number}.damaged"
    assert kept.read_bytes()[:4] == b"\xa5" * 4
    assert kept.stat().st_mode & 0o777 == 0o600
    with open(path / shared.DATA, "rb") as file:
        assert pages.read_meta(file.fileno(), number) is not None
    if newest == number:
        # The commit that is lost was acknowledged: the head file knows, and the vault says so.
        with pytest.raises(Damaged, match="older state"):
            Vault.open(path)
        (path / shared.HEAD).unlink()
    with Vault.open(path) as again:
        assert again.store.structure() == []
        if newest != number:
            assert read(again) == CONTENT
            sound(again)
