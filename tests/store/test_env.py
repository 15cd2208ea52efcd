"""Creating, opening and sharing a vault directory."""

from __future__ import annotations

import gc
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import lmdb
import lmdb.verify
import pytest

from blockvault.encoding import pack
from blockvault.errors import Busy, Conflict, Damaged, IOFailed, NotFound, Unsupported
from blockvault.ids import object_id
from blockvault.store import env, filesystem, rows, shared
from blockvault.store.env import LmdbStore
from blockvault.store.index import Index
from blockvault.store.types import Writer
from tests.store.material import OPTIONS, block, commit_something, framed, placed, run_python


def raw_put(home: Path, name: bytes, value: bytes | None) -> None:
    """Change a meta row behind the store's back, with plain LMDB."""
    with lmdb.open(str(home), map_size=1 << 40, max_dbs=32) as opened:
        meta = opened.open_db(b"meta", create=False)
        with opened.begin(write=True, buffers=True) as txn:
            table = rows.rows_of(txn.cursor(meta), "meta")
            if value is None:
                table.delete(name)
            else:
                table.put(name, value)


# -- creating ----------------------------------------------------------------------------------


def test_a_new_vault_is_private_and_its_lock_file_has_its_blocks(
    store: LmdbStore, home: Path
) -> None:
    assert sorted(path.name for path in home.iterdir()) == ["data.mdb", "head", "lock.mdb"]
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for path in home.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lock = (home / "lock.mdb").stat()
    assert lock.st_size == filesystem.LOCK_FILE_SIZE == 65664
    assert lock.st_blocks * 512 >= lock.st_size
    assert store._env.lmdb.max_readers() == filesystem.READERS
    assert store._env.lmdb.info()["map_size"] == 16 << 40
    assert list(home.parent.iterdir()) == [home]


def test_modes_do_not_depend_on_the_umask(home: Path) -> None:
    code = "os.umask(0); LmdbStore.create(sys.argv[1], OPTIONS).close()"
    assert run_python(code, home).returncode == 0
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {0o600}


@pytest.mark.parametrize("what", ["vault", "file", "full directory"])
def test_nothing_is_created_over_something(tmp_path: Path, home: Path, what: str) -> None:
    if what == "vault":
        LmdbStore.create(home, OPTIONS).close()
    elif what == "file":
        home.write_bytes(b"mine")
    else:
        (home / "mine").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Conflict, match="already exists"):
        LmdbStore.create(home, OPTIONS)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_is_taken_over(home: Path) -> None:
    home.mkdir(mode=0o755)
    LmdbStore.create(home, OPTIONS).close()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        LmdbStore.create(tmp_path / "nowhere" / "vault", OPTIONS)


def test_what_populate_writes_is_there_from_the_start(home: Path) -> None:
    def populate(writer: Writer) -> None:
        writer.append(b"init", 1, 5)

    with LmdbStore.create(home, OPTIONS, populate) as store, store.read() as reader:
        assert reader.last().seq == 1


def test_a_failed_creation_leaves_nothing(tmp_path: Path, home: Path) -> None:
    def fail(writer: Writer) -> None:
        writer.append(b"init", 1, 5)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        LmdbStore.create(home, OPTIONS, fail)
    assert list(tmp_path.iterdir()) == []
    LmdbStore.create(home, OPTIONS).close()


def test_a_creation_that_was_killed_leaves_no_vault_and_hinders_nobody(
    tmp_path: Path, home: Path
) -> None:
    code = "LmdbStore.create(sys.argv[1], OPTIONS, lambda w: os.kill(os.getpid(), signal.SIGKILL))"
    assert run_python(code, home).returncode == -9
    assert not home.exists()
    LmdbStore.create(home, OPTIONS).close()
    assert list(tmp_path.iterdir()) == [home]  # and what it left is swept up


def test_creations_at_the_same_time_make_one_vault(home: Path) -> None:
    results: list[object] = []

    def create() -> None:
        try:
            LmdbStore.create(home, OPTIONS).close()
            results.append("made")
        except Conflict:
            results.append("conflict")

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == ["conflict"] * 3 + ["made"]
    assert list(home.parent.iterdir()) == [home]


# -- opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["nothing", "empty directory", "file"])
def test_where_no_vault_is_none_is_made(tmp_path: Path, home: Path, what: str) -> None:
    if what == "empty directory":
        home.mkdir()
    elif what == "file":
        home.write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NotFound, match="no vault"):
        LmdbStore.open(home)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"x", bytes(8192), b"text " * 10_000], ids=len)
def test_a_file_that_is_no_database_is_damage(store: LmdbStore, home: Path, content: bytes) -> None:
    store.close()
    (home / "data.mdb").write_bytes(content)
    with pytest.raises(Damaged):
        LmdbStore.open(home)
    assert (home / "data.mdb").read_bytes() == content


def test_a_newer_format_is_refused(store: LmdbStore, home: Path) -> None:
    store.close()
    raw_put(home, b"format", pack(2))
    for readonly in (False, True):
        with pytest.raises(Unsupported, match="format 2"):
            LmdbStore.open(home, readonly=readonly)
    raw_put(home, b"format", pack(1))
    LmdbStore.open(home).close()


def test_an_unknown_required_feature_is_refused(store: LmdbStore, home: Path) -> None:
    store.close()
    raw_put(home, b"features", pack([["encrypted"], []]))
    with pytest.raises(Unsupported, match="encrypted"):
        LmdbStore.open(home)


def test_a_database_that_is_no_vault_is_damage(store: LmdbStore, home: Path) -> None:
    store.close()
    raw_put(home, b"vault_id", None)
    with pytest.raises(Damaged, match="vault_id"):
        LmdbStore.open(home)
    (home / "data.mdb").unlink()
    with lmdb.open(str(home), map_size=1 << 30):
        pass
    with pytest.raises(Damaged, match="a table is missing"):
        LmdbStore.open(home)


def test_a_missing_lock_file_is_made_again_with_its_blocks(store: LmdbStore, home: Path) -> None:
    store.close()
    (home / "lock.mdb").unlink()
    LmdbStore.open(home).close()
    assert (home / "lock.mdb").stat().st_blocks * 512 >= filesystem.LOCK_FILE_SIZE


def test_a_sparse_lock_file_gets_its_blocks(store: LmdbStore, home: Path) -> None:
    store.close()
    (home / "lock.mdb").unlink()
    with (home / "lock.mdb").open("wb") as file:
        file.truncate(filesystem.LOCK_FILE_SIZE)
    LmdbStore.open(home).close()
    assert (home / "lock.mdb").stat().st_blocks * 512 >= filesystem.LOCK_FILE_SIZE


def test_a_missing_head_file_is_made_again(store: LmdbStore, home: Path) -> None:
    store.close()
    (home / "head").unlink()
    with LmdbStore.open(home) as again, again.write() as writer:
        commit_something(writer, 1)
    assert (home / "head").stat().st_size > 0


# -- reading only ------------------------------------------------------------------------------


def test_a_readonly_store_reads_and_refuses_to_write(store: LmdbStore, home: Path) -> None:
    with store.write() as writer:
        commit_something(writer, 1)
    store.close()
    with LmdbStore.open(home, readonly=True) as reading:
        assert reading.readonly
        with reading.read() as reader:
            assert reader.last().seq == 1
        with pytest.raises(IOFailed, match="read-only"):
            reading.write()


def test_readonly_and_writable_stores_share_an_environment(store: LmdbStore, home: Path) -> None:
    with LmdbStore.open(home, readonly=True) as reading:
        with store.write() as writer:
            commit_something(writer, 1)
        with reading.read() as reader:
            assert reader.last().seq == 1
    store.close()
    with (
        LmdbStore.open(home, readonly=True),
        LmdbStore.open(home) as writing,
        writing.write() as writer,
    ):
        commit_something(writer, 2)


def make_readonly(home: Path) -> None:
    for path in home.iterdir():
        path.chmod(0o400)
    home.chmod(0o500)


def test_a_vault_without_write_permission_is_read_without_touching_it(
    store: LmdbStore, home: Path
) -> None:
    with store.write() as writer:
        commit_something(writer, 1)
    store.close()
    (home / "lock.mdb").unlink()
    make_readonly(home)
    before = [(path.name, path.stat().st_mtime_ns) for path in sorted(home.iterdir())]
    code = (
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "with LmdbStore.open(sys.argv[1], readonly=True) as store, store.read() as reader:\n"
        "    assert reader.last().seq == 1\n"
        "    assert len(list(reader.frames())) == 1\n"
    )
    if os.geteuid() == 0:
        for path in (home, *home.iterdir()):
            os.chown(path, 65534, 65534)
        shared = Path(tempfile.gettempdir())
        for parent in takewhile(shared.__ne__, home.parents):
            parent.chmod(parent.stat().st_mode | 0o055)
    ran = run_python(code, home)
    assert ran.returncode == 0, ran.stderr
    for readonly in (True, False):
        if readonly:
            LmdbStore.open(home, readonly=True).close()
            continue
        with pytest.raises(IOFailed, match="read-only"):
            LmdbStore.open(home)
    after = [(path.name, path.stat().st_mtime_ns) for path in sorted(home.iterdir())]
    assert after == before
    home.chmod(0o700)


def test_reading_without_locks_while_another_program_writes_is_noticed(
    store: LmdbStore, home: Path
) -> None:
    store.close()
    make_readonly(home)
    with LmdbStore.open(home, readonly=True) as reading:
        assert reading._env.lockless
        (home / "data.mdb").chmod(0o600)
        home.chmod(0o700)
        code = (
            "with LmdbStore.open(sys.argv[1]) as store:\n"
            "    for number in range(2):\n"
            "        with store.write() as writer:\n"
            "            commit_something(writer, number)\n"
        )
        for path in home.iterdir():
            path.chmod(0o600)

        def read() -> None:
            with reading.read() as reader:
                assert run_python(code, home).returncode == 0
                reader.last()

        with pytest.raises(Busy, match="without locks"):
            read()


# -- one environment in a process --------------------------------------------------------------


def test_opening_twice_shares_and_the_last_one_closes(store: LmdbStore, home: Path) -> None:
    alias = home.parent / "alias"
    alias.symlink_to(home)
    second, third = LmdbStore.open(home), LmdbStore.open(alias)
    assert store._env is second._env is third._env
    store.close()
    with second.write() as writer:
        commit_something(writer, 1)
    second.close()
    with third.read() as reader:
        assert reader.last().seq == 1
    third.close()
    assert shared._registry == {}


def test_a_vault_made_anew_at_the_same_place_is_another_one(store: LmdbStore, home: Path) -> None:
    with store.write() as writer:
        commit_something(writer, 1)
    home.rename(home.parent / "moved")
    with LmdbStore.create(home, OPTIONS) as fresh, fresh.read() as reader:
        assert reader.last().seq == 0
        with store.read() as old:
            assert old.last().seq == 1


def test_a_failed_opening_leaves_nothing_open(store: LmdbStore, home: Path) -> None:
    store.close()
    raw_put(home, b"format", pack(2))
    gc.collect()  # of what others have left open
    open_files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(Unsupported):
            LmdbStore.open(home)
    gc.collect()
    assert shared._registry == {}
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_opening_and_closing_leaves_no_descriptors(store: LmdbStore, home: Path) -> None:
    store.close()
    open_files = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with LmdbStore.open(home) as again, again.read() as reader:
            reader.last()
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_threads_open_read_and_close_at_the_same_time(store: LmdbStore, home: Path) -> None:
    with store.write() as writer:
        commit_something(writer, 1)
    store.close()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(60):
                with LmdbStore.open(home) as mine, mine.read() as reader:
                    assert reader.last().seq >= 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert shared._registry == {}


def test_a_write_transaction_ends_in_its_own_thread(store: LmdbStore) -> None:
    writer = store.write()
    writer.__enter__()
    caught: list[BaseException] = []

    def leave() -> None:
        try:
            writer.__exit__(None, None, None)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert "in the thread that began it" in str(caught[0])
    commit_something(writer, 1)
    writer.__exit__(None, None, None)
    with store.read() as reader:
        assert reader.last().seq == 1


@pytest.mark.parametrize(
    ("said", "harmless"),
    [
        ("main/index DB: walked 10 leaf pages (29 with dup sub-trees), record says 30", True),
        ("main/index DB: walked 1 branch pages (8 with dup sub-trees), record says 9", True),
        ("main/index DB: walked 10 leaf pages (29 with dup sub-trees), record says 9", False),
        ("main/log DB: walked 10 leaf pages (29 with dup sub-trees), record says 30", False),
        ("main/index DB: walked 10 entries, record says 30", False),
        ("main/index DB: walked 10 leaf pages, record says 30", True),
        ("main/index DB: walked 10 leaf pages, record says 9", False),
    ],
)
def test_pages_of_the_index_that_lmdb_counts_too_often_are_no_damage(
    said: str, harmless: bool
) -> None:
    assert env._counts_pages_that_went(said) == harmless


def test_an_index_that_was_emptied_is_sound(home: Path) -> None:
    """LMDB goes on counting pages of rows that have gone, and its verifier says so."""
    datas = [block(number) for number in range(200)]
    with LmdbStore.create(home, OPTIONS._replace(features=())) as store:
        frame = framed(datas)
        # All under one first byte, so that they get pages of their own; the index does not mind.
        ids = tuple(b"\x07" + oid[1:] for oid in frame.ids)
        with store.write() as writer:
            writer.add_frames([frame._replace(ids=ids), framed([block(1000)])])
        with store.write() as writer:
            writer.unindex(ids)
        assert lmdb.verify.verify(str(home / "data.mdb")) != []
        assert store.structure() == []


def test_a_damaged_part_of_the_index_hides_only_its_own_rows(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading many rows at once meets pages that nobody asked for."""
    datas = [b"%d" % number for number in range(5000)]
    ids = [object_id(data) for data in datas]
    with store.write() as writer:
        writer.add_frames([framed(datas)])
    read = []

    def damaged(self: Index, first: int, ids: object) -> dict[bytes, int]:
        read.append(first)
        raise lmdb.CorruptedError("a page is not what it was")

    monkeypatch.setattr(Index, "get_dense", damaged)
    with store.read() as reader:
        assert None not in reader.locate(ids)
        assert len(read) > 200
        expected = sorted(placed(reader, ids))

    def damaged_too(self: Index, first: int) -> Iterator[bytes]:
        slices.append(first)
        raise lmdb.CorruptedError("a page is not what it was")

    slices: list[int] = []
    monkeypatch.setattr(Index, "slices", damaged_too)
    with store.read() as reader:
        assert sorted(placed(reader, ids)) == expected
    assert len(expected) == len(ids)
    assert len(slices) > 200
