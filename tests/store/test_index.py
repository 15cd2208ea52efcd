"""The object index against a dictionary, with and without rows that wait under other keys."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import lmdb.verify
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blockvault.errors import Damaged
from blockvault.store import index
from blockvault.store.index import ENTRY_SIZE, Index

FIRSTS = (0, 7, 255)
LIMIT = 5


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lmdb.Environment]:
    path = tmp_path_factory.mktemp("index")
    with lmdb.open(str(path), max_dbs=1, map_size=1 << 26, sync=False) as environment:
        yield environment


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that rows move within a few steps."""
    monkeypatch.setattr(index, "_LIMITS", [LIMIT] * 256)
    monkeypatch.setattr(index, "_STEP", 2)


def oid(first: int, number: int) -> bytes:
    return bytes([first]) + random.Random(number).randbytes(31)


OIDS = [oid(first, number) for first in FIRSTS for number in range(40)]
LEVELS = (1, 2, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sets(st.sampled_from(OIDS), min_size=1, max_size=12)),
        st.tuples(st.just("put"), st.sampled_from(OIDS)),
        st.tuples(st.just("delete"), st.sampled_from(OIDS)),
        st.tuples(st.just("tighten"), st.sampled_from(FIRSTS)),
    ),
    max_size=25,
)


@settings(deadline=None)
@example(  # more rows wait than one slice has
    steps=[("add", {oid(0, n) for n in range(30, 34)}), ("add", {oid(0, 34)})],
    levels=3,
    settled=21,
)
@given(steps=STEPS, levels=st.sampled_from(LEVELS), settled=st.integers(0, 25))
def test_it_is_a_table(
    env: lmdb.Environment, steps: list[tuple[str, object]], levels: int, settled: int
) -> None:
    database = env.open_db(b"index", dupsort=True, dupfixed=True)
    with env.begin(write=True, buffers=True) as txn:
        txn.drop(database, delete=False)
        tested, model = Index(txn.cursor(database), levels), {}
        for first in FIRSTS:  # many rows go straight down
            apply(tested, model, "add", {oid(first, number) for number in range(settled)}, 1)
        for place, (what, given_) in enumerate(steps, 1 << 20):
            apply(tested, model, what, given_, place)
            agree(tested, model)
            assert txn.stat(database)["entries"] == len(model)


def apply(tested: Index, model: dict[bytes, int], what: str, given_: object, place: int) -> None:
    if what == "add":
        assert isinstance(given_, set)
        rows = {each: place << 8 | n for n, each in enumerate(given_) if each not in model}
        tested.add(list(rows.items()))
        model.update(rows)
    elif what == "put":
        assert isinstance(given_, bytes)
        tested.put(given_, place)
        model[given_] = place
    elif what == "delete":
        assert isinstance(given_, bytes)
        assert tested.delete(given_) == (model.pop(given_, None) is not None)
    else:
        assert isinstance(given_, int)
        assert tested.tighten(given_) == sum(each[0] == given_ for each in model)


def agree(tested: Index, model: dict[bytes, int]) -> None:
    rows = sorted(model.items())
    assert [tested.get(each) for each in OIDS] == [model.get(each) for each in OIDS]
    assert tested.get_many(OIDS) == model
    assert list(tested.scan(b"", None, False)) == rows
    assert list(tested.scan(b"", None, True)) == rows[::-1]
    low, high = sorted(random.Random(len(rows)).sample(OIDS, 2))
    assert list(tested.scan(low, high, False)) == [row for row in rows if low <= row[0] < high]
    assert list(tested.scan(low, high, True)) == [row for row in rows if low <= row[0] < high][::-1]
    for first in FIRSTS:
        packed = [each + place.to_bytes(7) for each, place in rows if each[0] == first]
        found = tested.entries(first)
        cut = [found[at : at + ENTRY_SIZE] for at in range(0, len(found), ENTRY_SIZE)]
        assert sorted(cut) == packed
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(index, "_SLICE", 3)
            sliced = list(tested.slices(first))
        assert b"".join(sliced) == found
        assert all(len(some) <= 3 * ENTRY_SIZE for some in sliced[:-1])
        assert tested.hidden(first) == 0


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_rows_under_a_key_that_nobody_looks_under_are_hidden(
    env: lmdb.Environment, levels: int
) -> None:
    table = env.open_db(b"index", dupsort=True, dupfixed=True)
    with env.begin(write=True, buffers=True) as txn:
        txn.drop(table, delete=False)
        tested = Index(txn.cursor(table), levels)
        tested.add([(oid(7, number), number) for number in range(1, 9)])
        assert tested.hidden(7) == 0
        for stray in (b"\7\0x", b"\7\2"):
            txn.put(stray, bytes(38), db=table)
            txn.put(stray, bytes(37) + b"y", db=table)
        txn.put(b"\x08", bytes(38), db=table)
        assert tested.hidden(7) == 4
        txn.abort()


def test_rows_whose_whole_key_is_hidden(env: lmdb.Environment) -> None:
    """By a damaged key in a page above: who asks for it is led past it."""

    class Misled:
        def __init__(self, cursor: Any) -> None:
            self._cursor = cursor

        def set_key(self, key: bytes) -> bool:
            return key != b"\7\0" and self._cursor.set_key(key)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._cursor, name)

    table = env.open_db(b"index", dupsort=True, dupfixed=True)
    with env.begin(write=True, buffers=True) as txn:
        txn.drop(table, delete=False)
        Index(txn.cursor(table), 2).add([(oid(7, number), number) for number in range(1, 4)])
        misled: Any = Misled(txn.cursor(table))
        assert Index(txn.cursor(table), 2).hidden(7) == 0
        assert Index(misled, 2).hidden(7) == 3
        txn.abort()


def test_a_damaged_row_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is not what it should be gives rows of any length."""
    rows = [bytes(38), bytes(37), bytes(38)]
    cursor: Any = SimpleNamespace(
        set_key=lambda key: True, count=lambda: len(rows), iternext_dup=lambda keys: iter(rows)
    )
    monkeypatch.setattr(index, "_SLICE", 2)
    with pytest.raises(Damaged, match="wrong length"):
        list(Index(cursor, 2).slices(0))


def test_rows_out_of_order_are_not_lost_when_it_is_tightened(tmp_path: Path) -> None:
    rows = [(bytes([7, number]) + bytes(30), number) for number in range(1, 9)]
    with lmdb.open(str(tmp_path), max_dbs=1) as environment:
        table = environment.open_db(b"index", dupsort=True, dupfixed=True)
        with environment.begin(write=True, buffers=True) as txn:
            Index(txn.cursor(table), 1).add(rows)
    data = tmp_path / "data.mdb"
    damaged = data.read_bytes().replace(bytes([3]) + bytes(36) + b"\3", bytes([99, *bytes(36), 3]))
    assert damaged != data.read_bytes()
    data.write_bytes(damaged)
    with lmdb.open(str(tmp_path), max_dbs=1) as environment:
        table = environment.open_db(b"index", create=False)
        with environment.begin(write=True, buffers=True) as txn:
            with pytest.raises(Damaged, match="out of order"):
                Index(txn.cursor(table), 1).tighten(7)
            txn.abort()
        with environment.begin(buffers=True) as txn:
            assert len(list(Index(txn.cursor(table), 1).scan(b"", None, False))) == len(rows)


def keys(env: lmdb.Environment, counts: list[int], levels: int) -> dict[bytes, int]:
    """How many rows lie under each key after commits of so many rows each."""
    database = env.open_db(b"index", dupsort=True, dupfixed=True)
    numbers = iter(range(1000))
    with env.begin(write=True, buffers=True) as txn:
        txn.drop(database, delete=False)
        for count in counts:
            rows = [(oid(9, next(numbers)), 1) for _ in range(count)]
            Index(txn.cursor(database), levels).add(rows)
        found = {}
        cursor = txn.cursor(database)
        for key in cursor.iternext_nodup():
            found[bytes(key)] = cursor.count()
        return found


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param([2, 2], {b"\x09\0": 4}, id="few wait"),
        pytest.param([2, 2, 1], {b"\x09": 4, b"\x09\0": 1}, id="enough move, but for one"),
        pytest.param([2, 3, 1], {b"\x09": 4, b"\x09\0": 2}, id="and the next ones wait"),
        pytest.param([2, 5], {b"\x09": 5, b"\x09\0": 2}, id="many go straight"),
    ],
)
def test_new_rows_wait_until_they_are_enough(
    env: lmdb.Environment, counts: list[int], expected: dict[bytes, int]
) -> None:
    assert keys(env, counts, 2) == keys(env, counts, 3) == expected
    assert keys(env, counts, 1) == {b"\x09": sum(counts)}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param([19, 4, 1], {b"": 23, b"\0": 1}, id="not where few have settled"),
        pytest.param([20, 4, 1], {b"": 20, b"\1": 4, b"\0": 1}, id="what was recent waits"),
        pytest.param([20, *[4] * 3], {b"": 30, b"\1": 1, b"\0": 1}, id="enough settle"),
        pytest.param([20, 4, 9], {b"": 20, b"\1": 9, b"\0": 4}, id="some go there straight"),
        pytest.param([20, 4, 10], {b"": 30, b"\0": 4}, id="many settle at once"),
    ],
)
def test_in_a_large_index_they_wait_once_more(
    env: lmdb.Environment, counts: list[int], expected: dict[bytes, int]
) -> None:
    assert keys(env, counts, 3) == {b"\x09" + key: count for key, count in expected.items()}
    assert b"\x09\1" not in keys(env, counts, 2)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("deleted", [0, 120, 400])
def test_lmdb_counts_its_pages_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: int, deleted: int
) -> None:
    """Its verifier takes a wrong count for damage."""
    monkeypatch.undo()
    firsts, rng, ids = range(16), random.Random(deleted), list[bytes]()
    with lmdb.open(str(tmp_path), max_dbs=1, map_size=1 << 28, sync=False) as env:
        database = env.open_db(b"index", dupsort=True, dupfixed=True)
        for _ in range(60):
            with env.begin(write=True, buffers=True) as txn:
                tested = Index(txn.cursor(database), levels)
                rows = [(bytes([rng.choice(firsts)]) + rng.randbytes(31), n) for n in range(500)]
                tested.add(rows)
                ids += [each for each, _ in rows]
                rng.shuffle(ids)
                assert all(tested.delete(ids.pop()) for _ in range(deleted))
        assert lmdb.verify.verify(str(tmp_path / "data.mdb")) == []
        with env.begin(write=True, buffers=True) as txn:
            tested = Index(txn.cursor(database), levels)
            assert sum(map(tested.tighten, firsts)) == len(ids)
        assert lmdb.verify.verify(str(tmp_path / "data.mdb")) == []


def test_not_all_first_bytes_move_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    limits = sorted(index._LIMITS)
    assert (limits[0], limits[-1]) == (64, 191)
    assert len(set(limits)) == 128


def test_small_commits_touch_fewer_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other keys are for: bytes written by commits of few rows into an index of many."""
    monkeypatch.undo()
    written = {levels: pages_of_a_commit(tmp_path, 200_000, levels, 256, 20) for levels in (1, 2)}
    assert written[2] < 0.65 * written[1]


def test_and_still_fewer_where_the_index_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    # A sixteenth of the first bytes has as many rows each as in an index of three million.
    written = {levels: pages_of_a_commit(tmp_path, 190_000, levels, 16, 400) for levels in (2, 3)}
    assert written[3] < 0.65 * written[2]


def pages_of_a_commit(home: Path, rows: int, levels: int, firsts: int, commits: int) -> float:
    """Pages that a commit of four rows for each first byte takes, into an index of so many.

    By how far the unused pages are used up.
    """
    rng = random.Random(3)
    path = home / str(levels)
    path.mkdir()
    with lmdb.open(str(path), max_dbs=1, map_size=1 << 30, sync=False) as env:
        database = env.open_db(b"index", dupsort=True, dupfixed=True)

        def commit(count: int) -> None:
            rows = [(bytes([rng.randrange(firsts)]) + rng.randbytes(31), 1) for _ in range(count)]
            with env.begin(write=True, buffers=True) as txn:
                Index(txn.cursor(database), levels).add(rows)

        commit(rows)
        for _ in range(commits):
            commit(4 * firsts)
        with env.begin():  # so that no page can be used again
            before = env.info()["last_pgno"]
            for _ in range(commits):
                commit(4 * firsts)
            return (env.info()["last_pgno"] - before) / commits
