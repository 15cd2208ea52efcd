"""Bit rot in a vault: each flipped bit is found, or lies where nothing is; no wrong byte, no crash.

One sound vault is copied, damaged, read through its public face and verified, thousands of times,
in child processes.  What counts as harmless must be proved by the page map.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from blockvault import Vault
from tests.faults import rot_case, story
from tools.faults import bitrot
from tools.faults.bitrot import Damage, Seen, Verdict
from tools.faults.children import Children
from tools.faults.pages import PageMap

BAD = (Verdict.SILENT, Verdict.CRASHED)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound")
    Vault.create(path).close()
    story.play(path, story.script(7, 90), lambda promise: None)
    return path


@pytest.fixture(scope="module")
def data(sound: Path) -> bytes:
    return (sound / rot_case.HOME / "data.mdb").read_bytes()


@pytest.fixture(scope="module")
def pages(data: bytes) -> PageMap:
    return PageMap(data)


class Bench:
    """Judges damages of one vault's files, and fails with the cases that went wrong."""

    def __init__(self, sound: Path, pages: PageMap, scratch: Path) -> None:
        self._sound, self._pages, self._scratch = sound, pages, scratch

    def judge(
        self, damages: list[Damage], *, file: str = "data.mdb", believe: bool = False
    ) -> list[tuple[Damage, Verdict, object]]:
        before = (self._sound / rot_case.HOME / file).read_bytes()
        checker = "tests.faults.rot_case:vault_checker"
        children = Children(checker, self._sound, self._scratch, file, believe)
        first, *outcomes = children.run([Damage(0, b"", "nothing"), *damages])
        assert first.returned, first
        assert isinstance(first.value, Seen)
        assert not first.value.errors
        return [
            (
                o.task,
                bitrot.judge(o, first.value, before, self._pages),
                o.value or o.died or o.error,
            )
            for o in outcomes
        ]

    def expect_sound(self, damages: list[Damage], *allowed: Verdict) -> None:
        judged = self.judge(damages)
        print(len(judged), bitrot.summary(verdict for _, verdict, _ in judged))
        bad = [case for case in judged if case[1] in BAD and case[1] not in allowed]
        assert not bad, f"{len(bad)} of {len(judged)}: {bad[:4]}"


@pytest.fixture
def bench(sound: Path, pages: PageMap, scratch: Path) -> Bench:
    return Bench(sound, pages, scratch)


def test_the_sound_vault_has_everything_in_it(pages: PageMap) -> None:
    tables = {span.table for span in pages.spans}
    assert tables >= {"", "free list", "main", "meta", "frames", "index", "log", "refs",
                      "branches", "waypoints", "trail", "snapshots"}  # fmt: skip
    assert len(pages.of_kind("value")) > 300


def test_every_bit_of_the_meta_pages(bench: Bench, data: bytes, pages: PageMap) -> None:
    bench.expect_sound(list(bitrot.meta_flips(data, pages.page_size)))


def test_bits_of_values(
    bench: Bench, data: bytes, pages: PageMap, seed: int, nightly: bool
) -> None:
    count = 4_000 if nightly else 300
    bench.expect_sound(bitrot.flips_in(data, pages.of_kind("value"), count, random.Random(seed)))


def test_bits_of_page_headers_pointers_nodes_and_keys(
    bench: Bench, data: bytes, pages: PageMap, seed: int, nightly: bool
) -> None:
    count = 2_000 if nightly else 300
    spans = pages.of_kind("header", "pointer", "node", "key")
    bench.expect_sound(bitrot.flips_in(data, spans, count, random.Random(seed)))


def test_bits_anywhere(bench: Bench, data: bytes, pages: PageMap, seed: int, nightly: bool) -> None:
    count = 4_000 if nightly else 200
    bench.expect_sound(list(bitrot.flips_anywhere(data, pages, count, random.Random(seed))))


def test_lost_and_misplaced_sectors(bench: Bench, data: bytes, seed: int, nightly: bool) -> None:
    count = 1_000 if nightly else 100
    bench.expect_sound(list(bitrot.lost_sectors(data, count, random.Random(seed))))


def test_cut_files(bench: Bench, data: bytes, pages: PageMap, seed: int, nightly: bool) -> None:
    count = 300 if nightly else 40
    bench.expect_sound(list(bitrot.truncations(data, pages, count, random.Random(seed))))


def test_the_head_file_may_be_lost_but_never_misleads(bench: Bench, sound: Path, seed: int) -> None:
    head, rng = (sound / rot_case.HOME / "head").read_bytes(), random.Random(seed)
    places = [rng.randrange(len(head)) for _ in range(60)]
    flips = [bitrot.flip(head, at, rng.randrange(8), "head") for at in places]
    for _, verdict, seen in bench.judge(flips, file="head"):
        assert verdict in (Verdict.FREE, Verdict.SILENT)  # the page map is of the other file
        assert isinstance(seen, Seen)
        assert not seen.errors


def test_without_checks_of_ids_flips_are_silent(
    bench: Bench, data: bytes, pages: PageMap, seed: int
) -> None:
    """The control: a vault that believes its index returns wrong bytes, and the bench sees it."""
    spans = [span for span in pages.of_kind("value") if span.table == "frames"]
    flips = bitrot.flips_in(data, spans, 60, random.Random(seed))
    judged = bench.judge(flips, believe=True)
    assert any(verdict is Verdict.SILENT for _, verdict, _ in judged)
