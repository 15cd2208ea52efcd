"""What every store does with tables, snapshots and transactions."""

from __future__ import annotations

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockvault.errors import BadRequest, VaultError
from blockvault.store import tables
from blockvault.store.types import Store
from tests.contract.conftest import Make
from tests.store.material import OPTIONS

KEYS = [b"\0\0", b"a", b"a\0", b"ab", b"b", b"b" * 511, b"\xff", b"\xff\xff"]


def fill(store: Store, table: str = "refs") -> list[tuple[bytes, bytes]]:
    rows = [(key, b"value of " + key[:5]) for key in KEYS]
    with store.write() as writer:
        for key, value in reversed(rows):
            writer.put(table, key, value)
    return sorted(rows)


@pytest.mark.parametrize("table", ["refs", "branches", "waypoints", "trail", "snapshots"])
def test_rows_are_got_and_scanned_in_key_order(store: Store, table: str) -> None:
    rows = fill(store, table)
    with store.read() as reader:
        assert [reader.get(table, key) for key, _ in rows] == [value for _, value in rows]
        assert reader.get(table, b"no such key") is None
        assert list(reader.scan(table)) == rows
        assert list(reader.scan(table, reverse=True)) == rows[::-1]


@given(start=st.sampled_from([b"", *KEYS, b"aa", b"c"]), stop=st.sampled_from([None, b"", *KEYS]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_scans_take_a_half_open_range(store: Store, start: bytes, stop: bytes | None) -> None:
    rows = fill(store)
    wanted = [row for row in rows if row[0] >= start and (stop is None or row[0] < stop)]
    with store.read() as reader:
        assert list(reader.scan("refs", start, stop)) == wanted
        assert list(reader.scan("refs", start, stop, reverse=True)) == wanted[::-1]
    with store.write() as writer:
        assert list(writer.scan("refs", start, stop)) == wanted
        assert list(writer.scan("refs", start, stop, reverse=True)) == wanted[::-1]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_writer_may_change_the_table_that_it_scans(store: Store, reverse: bool) -> None:
    with store.write() as writer:
        for number in range(1000):
            writer.put("trail", tables.u64_key(number), b"x")
    seen = []
    with store.write() as writer:
        for key, _ in writer.scan("trail", reverse=reverse):
            seen.append(key)
            writer.delete("trail", key)
            writer.put("refs", key, b"y")
        assert list(writer.scan("trail")) == []
    assert sorted(seen) == [tables.u64_key(number) for number in range(1000)]


def test_put_replaces_and_delete_tells(store: Store) -> None:
    with store.write() as writer:
        writer.put("refs", b"k", b"1")
        writer.put("refs", b"k", b"2")
        writer.put("refs", b"empty", b"")
        assert writer.get("refs", b"k") == b"2"
        assert writer.delete("refs", b"k")
        assert not writer.delete("refs", b"k")
        assert writer.get("refs", b"k") is None
        assert writer.get("refs", b"empty") == b""


def test_clear_empties_one_table(store: Store) -> None:
    fill(store, "refs")
    fill(store, "trail")
    with store.write() as writer:
        writer.clear("refs")
        assert list(writer.scan("refs")) == []
        writer.put("refs", b"new", b"row")
    with store.read() as reader:
        assert list(reader.scan("refs")) == [(b"new", b"row")]
        assert len(list(reader.scan("trail"))) == len(KEYS)


def test_large_values_are_kept_whole(store: Store) -> None:
    value = bytes(range(256)) * 40_000
    with store.write() as writer:
        writer.put("waypoints", b"big", value)
    with store.read() as reader:
        assert reader.get("waypoints", b"big") == value


@pytest.mark.parametrize("key", [b"", b"x" * 512, b"\0"], ids=["empty", "512 bytes", "first"])
def test_keys_that_no_table_holds_are_refused(store: Store, key: bytes) -> None:
    with store.write() as writer:
        for attempt in (
            lambda: writer.put("refs", key, b""),
            lambda: writer.get("refs", key),
            lambda: writer.delete("refs", key),
        ):
            with pytest.raises(BadRequest, match="1 to 511"):
                attempt()


@pytest.mark.parametrize("table", ["frames", "log", "nothing"])
def test_other_tables_have_no_byte_keys(store: Store, table: str) -> None:
    with store.write() as writer:
        for attempt in (
            lambda: writer.put(table, b"k", b""),
            lambda: writer.get(table, b"k"),
            lambda: writer.delete(table, b"k"),
            lambda: writer.clear(table),
            lambda: list(writer.scan(table)),
        ):
            with pytest.raises(BadRequest, match="no table"):
                attempt()


def test_an_exception_takes_everything_back(store: Store) -> None:
    rows = fill(store)

    def stop_in_the_middle() -> None:
        with store.write() as writer:
            writer.clear("refs")
            writer.append(b"x", 1, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop_in_the_middle()
    with store.read() as reader:
        assert list(reader.scan("refs")) == rows
        assert reader.last().seq == 0
    fill(store, "trail")


def test_a_reader_keeps_the_commit_it_began_with(store: Store) -> None:
    with store.read() as before:
        fill(store)
        assert list(before.scan("refs")) == []
        with store.read() as after:
            assert len(list(after.scan("refs"))) == len(KEYS)
        assert before.get("refs", b"a") is None


def test_nobody_sees_a_commit_before_it_is_one(store: Store) -> None:
    with store.write() as writer:
        writer.put("refs", b"k", b"v")
        assert writer.get("refs", b"k") == b"v"
        with store.read() as reader:
            assert reader.get("refs", b"k") is None
    with store.read() as reader:
        assert reader.get("refs", b"k") == b"v"


def test_what_a_reader_returned_outlives_it(store: Store) -> None:
    rows = fill(store)
    with store.read() as reader:
        kept = list(reader.scan("refs"))
    fill(store, "trail")
    assert kept == rows


def test_writers_take_turns_and_readers_do_not_wait(store: Store) -> None:
    def add() -> None:
        for _ in range(50):
            with store.write() as writer:
                count = int(writer.get("refs", b"count") or b"0")
                writer.put("refs", b"count", b"%d" % (count + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads):
        with store.read() as reader:
            seen.append(int(reader.get("refs", b"count") or b"0"))
    assert seen == sorted(seen)
    with store.read() as reader:
        assert reader.get("refs", b"count") == b"200"


def test_write_transactions_do_not_nest(store: Store) -> None:
    with store.write() as writer:
        writer.put("refs", b"k", b"v")
        with pytest.raises(RuntimeError, match="do not nest"), store.write():
            pass
    with store.read() as reader:
        assert reader.get("refs", b"k") == b"v"


def test_a_closed_store_says_so(make: Make) -> None:
    store = make(OPTIONS)
    store.close()
    store.close()
    for begin in (store.read, store.write):
        with pytest.raises(VaultError, match="closed") as caught:
            begin()
        assert caught.value.reason == "closed"


def test_open_transactions_outlive_the_close(make: Make) -> None:
    store = make(OPTIONS)
    fill(store)
    with store.read() as reader:
        store.close()
        assert len(list(reader.scan("refs"))) == len(KEYS)


def test_the_options_are_kept(make: Make) -> None:
    options = OPTIONS._replace(block_size=65536, compression="none")
    store = make(options)
    assert store.options._replace(features=options.features) == options
    assert not store.readonly
    with store.read() as reader:
        assert reader.options == store.options
