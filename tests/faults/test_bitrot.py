"""Bit rot in a vault: each flipped bit is found, or lies where nothing is; no wrong byte, no crash.

One sound vault is copied, damaged, read through its public face and verified, thousands of times,
in child processes.  What counts as harmless must be proved by the page map.

Where the structure of LMDB's pages may be hit, the engine may die while it reads, but verifying
must find it.  Nowhere else.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import pytest

from blockvault import Vault
from tests.faults import rot_case, story
from tools.faults import bitrot
from tools.faults.bitrot import Damage, Seen, Verdict
from tools.faults.children import Children, Outcome
from tools.faults.pages import PageMap

BAD = (Verdict.MISLED, Verdict.SILENT, Verdict.CRASHED)


def made(path: Path, steps: int) -> Path:
    Vault.create(path).close()
    story.play(path, story.script(7, steps), lambda promise: None)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("sound"), 90)


@pytest.fixture(scope="module")
def data(sound: Path) -> bytes:
    return (sound / rot_case.HOME / "data.mdb").read_bytes()


@pytest.fixture(scope="module")
def pages(data: bytes) -> PageMap:
    return PageMap(data)


class Case(NamedTuple):
    """One damage: how it ended, and what verifying and reading saw of it."""

    verdict: Verdict
    checks: tuple[Outcome, ...]

    def __str__(self) -> str:
        ends = [o.died or o.error[-300:] or str(o.value.errors[:2]) for o in self.checks]
        return f"{self.verdict.value}: {self.checks[0].task.what}: {ends}"


class Bench:
    """Judges damages of one vault's files, and fails with the cases that went wrong."""

    def __init__(self, sound: Path, pages: PageMap, scratch: Path) -> None:
        self._sound, self._pages, self._scratch = sound, pages, scratch

    def judge(
        self, damages: list[Damage], *, file: str = "data.mdb", believe: bool = False
    ) -> list[Case]:
        before = (self._sound / rot_case.HOME / file).read_bytes()
        tasks = [Damage(0, b"", "nothing"), *damages]
        arguments = (self._sound, self._scratch, file)
        careful = Children("tests.faults.rot_case:vault_checker", *arguments).run(tasks)
        careless = Children("tests.faults.rot_case:vault_reader", *arguments, believe).run(tasks)
        sound = careless[0].value
        assert isinstance(sound, Seen), careless[0]
        assert not sound.errors
        assert careful[0].value.same, careful[0]
        judged = []
        for pair in list(zip(careful, careless, strict=True))[1:]:
            checks = pair[1:] if believe else pair
            verdict = bitrot.judge(checks, sound, before, self._pages, self._offline)
            judged.append(Case(verdict, checks))
        return judged

    def _offline(self, damage: Damage) -> bool:
        here = self._scratch / "offline"
        rot_case.lay_out(self._sound, here, "data.mdb", damage)
        return bool(rot_case.structure_errors(here))

    def expect_sound(self, damages: list[Damage]) -> None:
        judged = self.judge(damages)
        print(len(judged), bitrot.summary(case.verdict for case in judged))
        bad = [case for case in judged if case.verdict in BAD]
        assert not bad, f"{len(bad)} of {len(judged)}:\n" + "\n".join(map(str, bad[:9]))


@pytest.fixture
def bench(sound: Path, pages: PageMap, scratch: Path) -> Bench:
    return Bench(sound, pages, scratch)


def test_the_sound_vault_has_everything_in_it(pages: PageMap) -> None:
    tables = {span.table for span in pages.spans}
    assert tables >= {"", "free list", "main", "meta", "frames", "index", "log", "refs",
                      "branches", "waypoints", "trail", "snapshots"}  # fmt: skip
    assert len(pages.of_kind("value")) > 150


def test_every_bit_of_the_meta_pages(
    tmp_path_factory: pytest.TempPathFactory, scratch: Path
) -> None:
    sound = made(tmp_path_factory.mktemp("small"), 25)
    data = (sound / rot_case.HOME / "data.mdb").read_bytes()
    flips = list(bitrot.meta_flips(data, PageMap(data).page_size))
    assert len(flips) == 2_432
    Bench(sound, PageMap(data), scratch).expect_sound(flips)


def test_bits_of_values(
    bench: Bench, data: bytes, pages: PageMap, seed: int, nightly: bool
) -> None:
    count = 4_000 if nightly else 300
    flips = bitrot.flips_in(data, pages.of_kind("value"), count, random.Random(seed))
    bench.expect_sound(flips)


def test_bits_of_page_headers_pointers_nodes_and_keys(
    bench: Bench, data: bytes, pages: PageMap, seed: int, nightly: bool
) -> None:
    count = 2_000 if nightly else 300
    spans = pages.of_kind("header", "pointer", "node", "key")
    flips = bitrot.flips_in(data, spans, count, random.Random(seed))
    bench.expect_sound(flips)


def test_bits_anywhere(bench: Bench, data: bytes, pages: PageMap, seed: int, nightly: bool) -> None:
    count = 4_000 if nightly else 200
    flips = list(bitrot.flips_anywhere(data, pages, count, random.Random(seed)))
    bench.expect_sound(flips)


def test_lost_and_misplaced_sectors(bench: Bench, data: bytes, seed: int, nightly: bool) -> None:
    count = 1_000 if nightly else 100
    sectors = list(bitrot.lost_sectors(data, count, random.Random(seed)))
    bench.expect_sound(sectors)


def test_cut_files(bench: Bench, data: bytes, pages: PageMap, seed: int, nightly: bool) -> None:
    count = 300 if nightly else 40
    bench.expect_sound(list(bitrot.truncations(data, pages, count, random.Random(seed))))


def test_the_head_file_may_be_lost_but_never_misleads(bench: Bench, sound: Path, seed: int) -> None:
    """It only watches: whatever happens to it, the vault reads and verifies as before."""
    head, rng = (sound / rot_case.HOME / "head").read_bytes(), random.Random(seed)
    flips = [bitrot.flip(head, rng.randrange(len(head)), n % 8, "head") for n in range(60)]
    for case in bench.judge(
        [*flips, Damage(0, None, "empty"), Damage(700, None, "cut")], file="head"
    ):
        assert [o.returned and not o.value.errors for o in case.checks] == [True, True]
        assert case.checks[0].value.same


def test_without_checks_of_ids_flips_are_silent(
    bench: Bench, data: bytes, pages: PageMap, seed: int
) -> None:
    """The control: a vault that believes its index returns wrong bytes, and the bench sees it."""
    spans = [span for span in pages.of_kind("value") if span.table == "frames"]
    flips = bitrot.flips_in(data, spans, 60, random.Random(seed))
    judged = bench.judge(flips, believe=True)
    assert any(case.verdict is Verdict.SILENT for case in judged)
