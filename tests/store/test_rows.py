"""Linked rows: one that is hidden, however it was done, is missed by whoever would have met it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.errors import Damaged
from blockvault.store.env import LmdbStore
from blockvault.store.rows import FIRST, Row, Rows, rows_of, seal, unseal
from tests.store.material import OPTIONS

KEYS = [b"a", b"c", b"ca", b"e", b"g"]


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Rows]:
    """A table with a row for each key, in a transaction that is given up."""
    with lmdb.open(str(tmp_path), max_dbs=1) as env:
        database = env.open_db(b"refs")
        with env.begin(write=True, buffers=True) as txn:
            made = rows_of(cast("lmdb.Cursor[memoryview]", txn.cursor(database)), "refs")
            made.begin()
            for key in reversed(KEYS):
                made.put(key, b"value of " + key)
            yield made
            txn.abort()


def hide(table: Rows, key: bytes, disguise: bytes = b"") -> None:
    """Take a row out behind the table's back; leave its bytes under another key, as a flip does."""
    cursor = table._cursor
    assert cursor.set_key(key)
    stored = bytes(cursor.value())
    cursor.delete()
    if disguise:
        cursor.put(disguise, stored)


@pytest.mark.parametrize("disguise", [b"", b"b", b"ff", b"z"])
@pytest.mark.parametrize("key", KEYS)
def test_a_hidden_row_is_missed(table: Rows, key: bytes, disguise: bytes) -> None:
    hide(table, key, disguise)
    for read in (
        lambda: table.get(key),
        lambda: table.get(key + b"\0"),
        lambda: list(table.scan(b"", None, reverse=False)),
        lambda: list(table.scan(b"", None, reverse=True)),
        lambda: list(table.scan(key, None, reverse=False)),
        lambda: list(table.scan(key, key + b"\0", reverse=False)),
        lambda: list(table.scan(key, key + b"\0", reverse=True)),
        lambda: table.put(key, b"new"),
        lambda: table.delete(key),
    ):
        with pytest.raises(Damaged, match="refs"):
            read()
    assert any(value is None for _, value in table.suspicious())


def test_rows_far_from_a_hidden_one_are_read(table: Rows) -> None:
    hide(table, b"c")
    assert table.get(b"g") == b"value of g"
    assert table.get(b"f") is None
    assert [row.key for row in table.scan(b"e", None, reverse=True)] == [b"g", b"e"]
    assert dict(table.suspicious()) == {
        key: None if key == b"a" else b"value of " + key for key in KEYS if key != b"c"
    }


def test_the_row_before_all_cannot_go_missing_either(table: Rows) -> None:
    hide(table, FIRST)
    with pytest.raises(Damaged):
        list(table.scan(b"", None, reverse=False))
    assert None in dict(table.suspicious()).values()


def test_an_empty_table_is_not_one_that_was_emptied(table: Rows) -> None:
    for key in KEYS:
        assert table.delete(key)
    assert list(table.scan(b"", None, reverse=False)) == []
    assert list(table.suspicious()) == []
    hide(table, FIRST)
    with pytest.raises(Damaged):
        table.get(b"a")
    assert list(table.suspicious()) == [(b"", None)]


@given(
    st.lists(st.tuples(st.sampled_from([*KEYS, b"b", b"h"]), st.booleans()), max_size=30),
)
def test_any_changes_leave_a_whole_chain(changes: list[tuple[bytes, bool]]) -> None:
    wanted: dict[bytes, bytes] = {}
    with tempfile.TemporaryDirectory() as home, lmdb.open(home, max_dbs=1) as env:
        database = env.open_db(b"refs")
        with env.begin(write=True, buffers=True) as txn:
            table = rows_of(cast("lmdb.Cursor[memoryview]", txn.cursor(database)), "refs")
            table.begin()
            for number, (key, put) in enumerate(changes):
                if put:
                    wanted[key] = b"%d" % number
                    table.put(key, wanted[key])
                else:
                    assert table.delete(key) == (wanted.pop(key, None) is not None)
                rows = [Row(k, v, b"") for k, v in sorted(wanted.items())]
                found = [row._replace(next=b"") for row in table.scan(b"", None, reverse=False)]
                assert found == rows
                assert list(table.suspicious()) == sorted(wanted.items())


@pytest.mark.parametrize("row", [Row(b"key", b"value", b"next"), Row(b"k", b"", b"")])
def test_no_bit_of_a_row_may_change(row: Row) -> None:
    stored = seal("refs", row)
    assert unseal("refs", row.key, stored) == row
    for bit in range(len(stored) * 8):
        flipped = bytearray(stored)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            unseal("refs", row.key, bytes(flipped))
    for table, key, data in (
        ("refs", b"kez", stored),
        ("trail", row.key, stored),
        ("refs", row.key + stored[:1], stored[1:]),
        ("refs", row.key, stored[:-1]),
        ("refs", row.key, b""),
    ):
        with pytest.raises(Damaged):
            unseal(table, key, data)


def test_a_hash_of_a_run_may_go_missing(tmp_path: Path) -> None:
    """Whoever misses one computes it again, so that table has no links."""
    with LmdbStore.create(tmp_path / "v", OPTIONS) as store:
        with store.write() as writer:
            for key in KEYS:
                writer.put("runs", key, key * 32)
            hide(writer._checked("runs"), b"c")
        with store.read() as reader:
            assert [key for key, _ in reader.scan("runs")] == [b"a", b"ca", b"e", b"g"]
            assert reader.get("runs", b"c") is None
