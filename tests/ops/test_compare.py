"""Differences: every block that differs, no other one, for any two states and for images."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockvault import Vault
from blockvault.errors import NotFound
from blockvault.model.retention import Policy
from blockvault.ops import attachments, compare, forget, gc, prune
from blockvault.ops.ingest import Image, import_images
from blockvault.store.objects import ObjectReader
from tests.oracle import BLOCK, noise

SIZES = [1, BLOCK - 1, 31 * BLOCK, 32 * BLOCK + 1, 40 * BLOCK, 1100 * BLOCK + 7]


def expected(a: bytes, b: bytes) -> list[tuple[int, int]]:
    """Whole blocks that differ, merged, cut at the larger size; the smaller goes on in zeros."""
    size = max(len(a), len(b))
    a, b = a.ljust(size, b"\0"), b.ljust(size, b"\0")
    runs: list[tuple[int, int]] = []
    for at in range(0, size, BLOCK):
        if a[at : at + BLOCK] != b[at : at + BLOCK]:
            length = min(BLOCK, size - at)
            if runs and sum(runs[-1]) == at:
                runs[-1] = runs[-1][0], runs[-1][1] + length
            else:
                runs.append((at, length))
    return runs


def states(vault: Vault, folder: Path) -> dict[str, bytes]:
    """Snapshots of all sizes, each similar to the one before, and a head with an overlay."""
    rng, found = random.Random(1), {}
    data = noise(1, max(SIZES))
    for size in SIZES:
        for _ in range(6):
            at = rng.randrange(len(data))
            data = data[:at] + bytes(rng.randrange(9000)) + data[at:]
        image = folder / "image.raw"
        image.write_bytes(data[:size])
        found[import_images(vault, [Image(image, "v")]).id.hex()] = data[:size]
    with vault.session() as session:
        session.device().write(3 * BLOCK - 1, b"xy")
        session.device().zero(900 * BLOCK, 20 * BLOCK)
    found["main"] = vault.open_volume("main").read()
    return found


def test_all_pairs_of_states_and_images(vault: Vault, tmp_path: Path) -> None:
    found = states(vault, tmp_path)
    for rev_b, b in found.items():
        image = tmp_path / "other.img"
        image.write_bytes(b)
        for rev_a, a in found.items():
            (diff,) = vault.diff(rev_a, rev_b)
            assert list(diff.extents) == expected(a, b), (len(a), len(b))
            assert (diff.size_a, diff.size_b) == (len(a), len(b))
            assert diff.changed == sum(length for _, length in diff.extents)
            assert diff.differs == (a != b)
            outside = compare.diff_file(vault, rev_a, None, image)
            assert outside.extents == diff.extents
            assert outside.differs == diff.differs


def test_nothing_is_stored_for_a_comparison(vault: Vault, tmp_path: Path) -> None:
    states(vault, tmp_path)
    image = tmp_path / "other.img"
    image.write_bytes(noise(9, 50 * BLOCK))
    with vault.read() as reader:
        before = reader.last(), sum(1 for _ in reader.frames(0))
    assert compare.diff_file(vault, "main", "v", image).differs
    with vault.read() as reader:
        assert (reader.last(), sum(1 for _ in reader.frames(0))) == before


@pytest.mark.parametrize("compared", [compare.diff, compare.diff_attachments])
def test_what_is_compared_is_not_collected_meanwhile(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, compared: Callable[..., list[Any]]
) -> None:
    with vault.session() as session, vault.guard():
        disk = session.create_volume("v", 3000 * BLOCK)
        for number in (1, 2):
            disk.write(0, noise(number, 2000 * BLOCK))
            files = {"memory": noise(number + 2, 2000 * BLOCK)}
            session.snapshot(str(number), attachments=attachments.keep(vault, files))
    states = vault.resolve("main~1"), vault.resolve("main~0")
    expected, real = compared(vault, *states), compare._volume_diff

    def later(*arguments: Any) -> compare.VolumeDiff:
        forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
        gc.collect(vault, wait=0)
        return real(*arguments)

    monkeypatch.setattr(compare, "_volume_diff", later)
    monkeypatch.setattr(vault, "objects", ObjectReader(vault.store, cache_bytes=1))
    assert compared(vault, *states) == expected
    for ends in (states, states[::-1]):
        with pytest.raises(NotFound, match="pruned meanwhile"):
            compared(vault, *ends)
    assert not list((vault.path / "pins").glob("pin.*"))


def test_an_empty_file_and_a_missing_volume(vault: Vault, tmp_path: Path) -> None:
    empty = tmp_path / "empty.img"
    empty.touch()
    with vault.session() as session:
        session.create_volume("v", 10).write(0, b"0123456789")
        session.snapshot()
        session.create_volume("w", 5000).write(4096, b"w")
    assert compare.diff_file(vault, "main", "v", empty).extents == ((0, 10),)
    v, w = vault.diff("main~0", "main")
    assert not v.differs
    assert (w.size_a, w.size_b, w.extents) == (None, 5000, ((4096, 904),))
    assert vault.diff("main", "main~0")[1].size_b is None


def test_an_empty_volume_against_none_differs(vault: Vault) -> None:
    vault.create_branch("before")
    with vault.session() as session:
        session.create_volume("v", 5 * BLOCK)
    (diff,) = vault.diff("before", "main")
    assert diff.differs
    assert diff.extents == ()
