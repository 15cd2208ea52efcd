"""verify and rebuild: what is spoilt is found, and what follows from the log is mended."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.model.projections import TABLES
from blockvault.ops import check, rebuild
from blockvault.store import tables
from blockvault.store.writetxn import LmdbWriter
from tests.oracle import BLOCK, Disk, noise

SIZE = 3000 * BLOCK + 9


@pytest.fixture(params=["none", "zstd:3"])
def vault(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Vault]:
    """Raw frames and compressed ones, trees of three levels, a tag, two branches."""
    with Vault.create(tmp_path, compression=request.param) as made:
        with made.session() as session:
            disk = Disk(SIZE, session.create_volume("v", SIZE))
            disk.write(0, noise(1, 40 * BLOCK))
            disk.write(2000 * BLOCK, b"text that shrinks " * 20_000)
            session.snapshot("one")
            disk.write(SIZE - 9, b"last ones")
            session.flush()
        made.tag("t", "main~0")
        made.create_branch("other")
        yield made


def put_frame(vault: Vault, number: int, data: bytes) -> None:
    """Replace a frame past every check of the store."""
    with vault.store.write() as writer:
        assert isinstance(writer, LmdbWriter)
        writer._txn.put(number.to_bytes(8, sys.byteorder), data, db=writer._dbs[tables.FRAMES])
    vault.objects.close()


def get_frame(vault: Vault, number: int) -> bytes:
    with vault.read() as reader:
        return reader.frame(number) or b""


def spoil(vault: Vault, number: int, at: int) -> None:
    """Flip one bit of a frame."""
    data = bytearray(get_frame(vault, number))
    data[at] ^= 1 << at % 8
    put_frame(vault, number, bytes(data))


def frame_numbers(vault: Vault) -> list[int]:
    with vault.read() as reader:
        return [number for number, _ in reader.frames(0)]


def test_a_sound_vault(vault: Vault) -> None:
    progress: list[tuple[int, int]] = []
    report = check.verify(vault, progress=lambda done, total: progress.append((done, total)))
    assert report.ok
    assert report.events == vault.branch("other").seq
    assert report.objects > 40
    assert progress
    assert check.verify(vault, fast=True).ok
    for rev in ("main", "t", "other", "main@{#5}"):
        assert check.verify(vault, rev).ok


def rows(vault: Vault, table: str) -> dict[bytes, bytes]:
    with vault.read() as reader:
        return dict(reader.scan(table))


@pytest.mark.parametrize("table", TABLES)
def test_lost_and_spoilt_rows_come_back(vault: Vault, table: str) -> None:
    before = rows(vault, table)
    rng = random.Random(table)
    with vault.store.write() as writer:
        for key, value in before.items():
            if rng.random() < 0.6:
                writer.delete(table, key)
            elif rng.random() < 0.5:
                writer.put(table, key, value + b"x")
        writer.put(table, b"\xff" * 8, b"nobody")
    assert check.verify(vault, fast=True).problems
    spoilt = rows(vault, table)
    found = rebuild.rebuild(vault, dry_run=True)
    assert rows(vault, table) == spoilt
    done = rebuild.rebuild(vault)
    assert found.changed_rows == done.changed_rows > 0
    assert rows(vault, table) == before
    assert rebuild.rebuild(vault).changed_rows == 0
    assert check.verify(vault).ok


def test_a_lost_index_comes_back(vault: Vault) -> None:
    before = rows(vault, tables.INDEX)
    with vault.store.write() as writer:
        writer.clear(tables.INDEX)
    assert not check.verify(vault, fast=True).ok
    done = rebuild.rebuild(vault)
    assert done.index_entries == len(before)
    assert rows(vault, tables.INDEX) == before
    assert check.verify(vault).ok


def test_index_entries_that_lie(vault: Vault) -> None:
    before = rows(vault, tables.INDEX)
    keys = sorted(before)
    nowhere = tables.pack_location(tables.location(1 << 30, 0))
    with vault.store.write() as writer:
        for key, value in ((keys[0], before[keys[1]]), (b"\7" * 32, nowhere)):
            if key in before:
                writer.delete(tables.INDEX, key)
            writer.put(tables.INDEX, key, value)
    assert not check.verify(vault).ok
    rebuild.rebuild(vault)
    assert rows(vault, tables.INDEX) == before


def test_a_commit_beside_a_rebuild_is_not_undone(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are replaced only while the log is what they were replayed from."""
    with vault.store.write() as writer:
        writer.delete("refs", b"tags/t")
    differences, calls = rebuild.differences, []

    def late(*arguments: object) -> object:
        found = differences(*arguments)  # type: ignore[arg-type]
        calls.append(found[0])
        if len(calls) == 1:
            vault.tag("t", "main")
        return found

    monkeypatch.setattr(rebuild, "differences", late)
    rebuild.rebuild(vault)
    assert len(calls) == 2
    assert vault.resolve("t").seq == vault.resolve("main").seq
    assert check.verify(vault).ok


def test_every_flipped_bit_of_a_frame_is_found(vault: Vault, nightly: bool) -> None:
    rng = random.Random(5)
    for number in frame_numbers(vault):
        original = get_frame(vault, number)
        places = {0, 1, len(original) - 1, *(rng.randrange(len(original)) for _ in range(6))}
        for at in range(len(original)) if nightly and len(original) < 2000 else places:
            spoil(vault, number, at)
            report = check.verify(vault)
            changed = get_frame(vault, number) != original
            assert not changed or not report.ok, f"frame {number}, byte {at}"
            put_frame(vault, number, original)
    vault.objects.close()
    assert check.verify(vault).ok


def test_damage_is_named_by_place(vault: Vault) -> None:
    first = frame_numbers(vault)[0]
    spoil(vault, first, len(get_frame(vault, first)) - 1)
    report = check.verify(vault, "main~0")
    assert report.problems
    assert all("of volume 'v': " in problem.message for problem in report.problems)
    assert {each.object for each in report.touched} <= report.lost
    assert {each.volume for each in report.touched} == {"v"}
    assert {problem.kind for problem in check.verify(vault).problems} >= {"object-damaged"}


def test_a_lost_frame_is_found_by_the_fast_check_of_objects(vault: Vault) -> None:
    with vault.store.write() as writer:
        for key in rows(vault, tables.INDEX):
            if key[0] < 128:
                writer.delete(tables.INDEX, key)
    kinds = {problem.kind for problem in check.verify(vault, fast=True).problems}
    assert "object-missing" in kinds
    assert not check.verify(vault, "main", fast=True).ok
