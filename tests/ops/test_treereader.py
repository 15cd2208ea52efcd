"""The tree of a volume as a map, and what its reader tells of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.ids import ZERO_ID
from blockvault.model import tree
from blockvault.ops import reading, treereader
from blockvault.ops.treereader import TreeReader
from tests.oracle import BLOCK, noise

BLOCKS = 10 * tree.FANOUT**2 + 7
WRITTEN = random.Random(4).sample(range(BLOCKS), 500)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.create(tmp_path) as made:
        with made.session() as session:
            disk = session.create_volume("vda", BLOCKS * BLOCK)
            for number in WRITTEN:
                disk.write(number * BLOCK, noise(number, BLOCK))
            session.checkpoint()
        yield made


@pytest.fixture
def reader(vault: Vault) -> TreeReader:
    volume = vault.resolve("main").volume("vda")
    return TreeReader(vault.objects, BLOCKS, volume.root)


def named(reader: TreeReader) -> list[bytes]:
    return [reader.block_id(number) for number in range(BLOCKS)]


def test_one_by_one_and_in_ranges_it_says_the_same(vault: Vault, reader: TreeReader) -> None:
    one_by_one = named(reader)
    assert [n for n, oid in enumerate(one_by_one) if oid != ZERO_ID] == sorted(WRITTEN)
    other = TreeReader(vault.objects, BLOCKS, reader.root)
    for first, stop in ((0, 1), (31, 33), (5, 2000), (BLOCKS - 40, BLOCKS), (0, BLOCKS)):
        assert other.block_ids(first, stop) == one_by_one[first:stop]


@pytest.mark.parametrize("leaves", [32768, 3])
def test_a_cache_that_is_too_small_changes_nothing(
    vault: Vault, reader: TreeReader, monkeypatch: pytest.MonkeyPatch, leaves: int
) -> None:
    right = named(reader)
    monkeypatch.setattr(treereader, "_LEAF_CACHE", leaves)
    other = TreeReader(vault.objects, BLOCKS, reader.root)
    order = random.Random(5).sample(range(BLOCKS), 3000)
    assert [other.block_id(number) for number in order] == [right[number] for number in order]


def told(reader: TreeReader) -> int:
    """How often it takes until all is told; 99 stands for more than that."""
    return next((count for count in range(99) if reader._telling.done or reader.tell()), 99)


def test_after_some_reads_all_is_told(vault: Vault, reader: TreeReader, tmp_path: Path) -> None:
    vault.objects.keep_decoded(tmp_path, 64 << 20)
    assert told(reader) == 6, "eleven parents, two at a time"
    expected = vault.objects._at_hand._expected
    assert all(oid in expected for oid in named(reader))


def test_long_reads_tell_nothing_but_do_not_hide_anything_either(
    vault: Vault, tmp_path: Path
) -> None:
    vault.objects.keep_decoded(tmp_path, 64 << 20)
    device = reading.open_device(vault, vault.resolve("main"), None)
    device.read(0, BLOCKS * BLOCK)
    assert not device.tree._telling.told
    for number in range(6):
        device.read(number * BLOCK, BLOCK)
    assert device.tree._telling.done


def test_nothing_is_told_where_nobody_listens(reader: TreeReader) -> None:
    assert told(reader) == 99
    assert not reader._telling.told


def test_a_large_tree_never_tells_all(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: TreeReader
) -> None:
    monkeypatch.setattr(treereader, "_LEAF_CACHE", 3)
    vault.objects.keep_decoded(tmp_path, 64 << 20)
    large = TreeReader(vault.objects, BLOCKS, reader.root)
    assert named(large) == named(reader)
    assert told(large) == 99


def test_what_was_told_stays_told_after_a_checkpoint(vault: Vault, tmp_path: Path) -> None:
    vault.objects.keep_decoded(tmp_path, 64 << 20)
    with vault.session("main") as session:
        head = session.device("vda")
        for number in range(6):
            head.read(number * BLOCK, BLOCK)
        assert head.tree._telling.done
        head.write(77 * BLOCK, noise(1, BLOCK))
        session.flush()
        assert head.overlay.get(77) in vault.objects._at_hand._expected
        session.checkpoint()
        assert head.tree._telling.done
        assert head.read(77 * BLOCK, BLOCK) == noise(1, BLOCK)
