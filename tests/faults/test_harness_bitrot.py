"""The page map and the bit-rot tool, held against plain LMDB.

LMDB checks no payload, so a flip in a value must come out as silent when nobody proves values, and
as found when somebody does: the positive control.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import lmdb
import pytest

from tests.faults import lmdb_case
from tools.faults import bitrot
from tools.faults.bitrot import Damage, Seen, Verdict
from tools.faults.children import Children
from tools.faults.pages import IN_USE, META_SIZE, PageMap

RECORDS = 300


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound")
    with lmdb_case.open_env(path) as env:
        for number in range(RECORDS):
            lmdb_case.commit(env, number)
    return path


@pytest.fixture(scope="module")
def data(sound: Path) -> bytes:
    return (sound / "data.mdb").read_bytes()


def examine(
    sound: Path, scratch: Path, damages: list[Damage], *, prove: bool = True
) -> list[Verdict]:
    data = (sound / "data.mdb").read_bytes()
    checker = "tests.faults.lmdb_case:rot_checker"
    nothing = Damage(0, b"", "nothing")
    first, *rest = Children(checker, sound, scratch, prove).run([nothing, *damages])
    assert isinstance(first.value, Seen)
    assert not first.value.errors
    return [bitrot.judge([outcome], first.value, data, PageMap(data)) for outcome in rest]


def test_the_map_agrees_with_the_engine(sound: Path, data: bytes) -> None:
    pages = PageMap(data)
    with lmdb_case.open_env(sound) as env:
        info, stat = env.info(), env.stat()
        with env.begin() as txn:
            stored = sorted(bytes(v) for _, v in txn.cursor())
    assert pages.newest.txn == info["last_txnid"]
    assert pages.newest.last_page == info["last_pgno"]
    assert pages.page_size == stat["psize"]
    values = [span for span in pages.of_kind("value") if span.table == "main"]
    assert sorted(data[span.start : span.stop] for span in values) == stored
    tops = {s.start // pages.page_size for s in pages.of_kind("header") if s.table == "main"}
    big = [span for span in values if span.start % 4096 == 16 and span.stop - span.start > 2000]
    assert len(tops) == stat["branch_pages"] + stat["leaf_pages"] + len(big)
    assert stat["overflow_pages"] == sum(-((span.start - span.stop - 16) // 4096) for span in big)


def test_spans_do_not_overlap(data: bytes) -> None:
    spans = PageMap(data).spans
    assert all(a.stop <= b.start for a, b in itertools.pairwise(spans))


def test_the_map_knows_subtrees_by_name(tmp_path: Path) -> None:
    with lmdb_case.open_env(tmp_path) as env, env.begin(write=True) as txn:
        for name in (b"left", b"right"):
            table = env.open_db(name, txn=txn)
            txn.put(b"key", b"in " + name, db=table)
    data = (tmp_path / "data.mdb").read_bytes()
    found = {s.table: data[s.start : s.stop] for s in PageMap(data).of_kind("value")}
    assert {name: found[name] for name in ("left", "right")} == {
        "left": b"in left",
        "right": b"in right",
    }


@pytest.mark.parametrize("count", [1, 5, 500])
def test_the_map_follows_duplicates(tmp_path: Path, count: int) -> None:
    """One value, a few in a page inside the node, and a tree of their own."""
    expected = sorted(b"%05d" % n for n in range(count))
    with lmdb_case.open_env(tmp_path) as env, env.begin(write=True) as txn:
        table = env.open_db(b"many", txn=txn, dupsort=True, dupfixed=True)
        for value in expected:
            txn.put(b"key", value, db=table)
    data = (tmp_path / "data.mdb").read_bytes()
    spans = [s for s in PageMap(data).of_kind("value") if s.table == "many"]
    joined = b"".join(data[span.start : span.stop] for span in spans)
    assert sorted(joined[at : at + 5] for at in range(0, len(joined), 5)) == expected


def test_overwriting_all_that_is_unused_changes_nothing(sound: Path, tmp_path: Path) -> None:
    """The proof of "free": every byte that the map does not call used may be anything."""
    data = (sound / "data.mdb").read_bytes()
    pages = PageMap(data)
    noise = bytearray(random.Random(1).randbytes(len(data)))
    for span in pages.spans:
        if span.kind in IN_USE:
            noise[span.start : span.stop] = data[span.start : span.stop]
    (tmp_path / "data.mdb").write_bytes(noise)
    with lmdb.open(str(tmp_path), readonly=True, lock=False) as env, env.begin() as txn:
        there = {int(k[:8]): bytes(v) for k, v in txn.cursor()}
    assert there == {number: lmdb_case.value(number) for number in range(RECORDS)}
    assert noise.count(0) < data.count(0) / 2


def test_there_are_2432_meta_bits(data: bytes) -> None:
    flips = list(bitrot.meta_flips(data, 4096))
    assert len({(f.offset, f.data) for f in flips}) == len(flips) == 2 * META_SIZE * 8 == 2432


def test_flips_in_values_are_found_by_hashes(
    sound: Path, data: bytes, scratch: Path, seed: int
) -> None:
    spans = [span for span in PageMap(data).of_kind("value") if span.table == "main"]
    flips = bitrot.flips_in(data, spans, 60, random.Random(seed))
    verdicts = examine(sound, scratch, flips)
    assert Counter(verdicts) == {Verdict.FOUND: 60}


def test_flips_in_values_are_silent_without_hashes(
    sound: Path, data: bytes, scratch: Path, seed: int
) -> None:
    spans = [span for span in PageMap(data).of_kind("value") if span.table == "main"]
    flips = bitrot.flips_in(data, spans, 60, random.Random(seed))
    assert Counter(examine(sound, scratch, flips, prove=False)) == {Verdict.SILENT: 60}


def test_flips_in_unused_bytes_are_free(sound: Path, data: bytes, scratch: Path) -> None:
    pages, rng = PageMap(data), random.Random(2)
    unused = [at for at in rng.sample(range(len(data)), 4000) if not pages.span_at(at)][:100]
    flips = [bitrot.flip(data, at, at % 8, "unused") for at in unused]
    assert Counter(examine(sound, scratch, flips)) == {Verdict.FREE: len(unused)}


def test_some_flips_of_meta_bits_roll_back_silently(
    sound: Path, data: bytes, scratch: Path
) -> None:
    """What a vault keeps its head file for: LMDB by itself cannot see these."""
    counts = Counter(examine(sound, scratch, list(bitrot.meta_flips(data, 4096))[::5]))
    assert counts[Verdict.FOUND] > 30
    assert counts[Verdict.SILENT] > 10


def test_a_check_that_dies_is_reported_and_the_next_one_runs(
    sound: Path, data: bytes, scratch: Path
) -> None:
    """A cut file: reading the lost pages through the map is SIGBUS."""
    damages = [Damage(len(data) // 2, None, "cut"), Damage(0, b"", "nothing")] * 3
    verdicts = examine(sound, scratch, damages)
    assert verdicts == [Verdict.CRASHED, Verdict.FREE] * 3


def test_every_kind_of_damage_changes_the_file(data: bytes, tmp_path: Path, seed: int) -> None:
    pages, rng = PageMap(data), random.Random(seed)
    damages = [
        *bitrot.flips_anywhere(data, pages, 20, rng),
        *bitrot.truncations(data, pages, 12, rng),
        *bitrot.lost_sectors(data, 20, rng),
    ]
    assert len(damages) > 40
    for damage in damages:
        (tmp_path / "copy").write_bytes(data)
        damage.apply(tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() != data, damage.what
