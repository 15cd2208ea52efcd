"""The data file written anew: smaller, the same, alone, and whole at every moment."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockvault.errors import Busy, Damaged, IOFailed
from blockvault.store import compaction, shared, tables
from blockvault.store.env import LmdbStore
from blockvault.store.objects import ObjectReader
from tests.conftest import skip
from tests.store.material import OPTIONS, block, framed, noise
from tools.faults.pages import PageMap, Span

PAGE = 4096


def fill(path: Path) -> tuple[list[bytes], list[bytes]]:
    """A store of which most was dropped; the objects that stay, and the rows of all tables."""
    kept = [block(number) for number in range(10)]
    with LmdbStore.create(path, OPTIONS) as store:
        with store.write() as writer:
            writer.add_frames([framed([noise(4096, seed)]) for seed in range(2000, 2600)])
        with store.write() as writer:
            writer.add_frames([framed(kept)])
            writer.append(b"\x91\x93\x13\x00\x01", 1, 5)
        with store.write() as writer:
            writer.drop_frames(list(range(1, 601)))
    return kept, everything(path)


def everything(path: Path) -> list[bytes]:
    with LmdbStore.open(path) as store, store.read() as reader:
        found = [repr(list(reader.scan(name))).encode() for name in ("meta", "index")]
        return [*found, repr(list(reader.frames())).encode(), repr(reader.last()).encode()]


def test_it_is_smaller_and_the_same(tmp_path: Path) -> None:
    from blockvault.ids import object_id

    path = tmp_path / "vault"
    kept, before = fill(path)
    done = compaction.compact(path)
    assert done.after < done.before / 4
    assert everything(path) == before
    with LmdbStore.open(path) as store:
        reader = ObjectReader(store)
        assert [reader.get(object_id(data)) for data in kept] == kept
        with store.write() as writer:
            writer.append(b"\x91\x93\x13\x00\x01", 1, 6)
    assert sorted(p.name for p in path.iterdir()) == ["data.mdb", "head", "lock.mdb"]
    assert (path / "data.mdb").stat().st_mode & 0o777 == 0o600


def test_the_head_file_watches_again(tmp_path: Path) -> None:
    path = tmp_path / "vault"
    fill(path)
    old = (path / "data.mdb").read_bytes()
    compaction.compact(path)
    with LmdbStore.open(path) as store, store.write() as writer:
        writer.append(b"\x91\x93\x13\x00\x01", 1, 6)
    (path / "data.mdb").write_bytes(old)
    with pytest.raises(Exception, match="older state"):
        LmdbStore.open(path)


def test_an_open_vault_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vault"
    fill(path)
    with LmdbStore.open(path), pytest.raises(Busy, match="this process"):
        compaction.compact(path)
    code = (
        "import sys; from blockvault.store.env import LmdbStore; from pathlib import Path\n"
        "with LmdbStore.open(Path(sys.argv[1])): print('open', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        before = os.stat(path / "data.mdb").st_ino
        with pytest.raises(Busy, match="another process"):
            compaction.compact(path)
        assert os.stat(path / "data.mdb").st_ino == before
        other.communicate()
    compaction.compact(path)


def test_a_directory_that_takes_no_file_is_not_said_to_be_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vault"
    fill(path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(IOFailed) as refused:
        compaction.compact(path)
    assert refused.value.reason == "not-permitted"


def test_who_waits_for_it_opens_the_new_file(tmp_path: Path, monkeypatch) -> None:
    """A store is opened between the look at the old file and the rename."""
    path = tmp_path / "vault"
    _, before = fill(path)
    real, moments = shared.Environment.__init__, []

    def slow(self, where: Path, wait: float) -> None:
        real(self, where, wait)
        if not moments:
            moments.append(self.lmdb)
            fresh = path / "copy.mdb"
            fresh.write_bytes((path / "data.mdb").read_bytes())
            fresh.rename(path / "data.mdb")

    monkeypatch.setattr(shared.Environment, "__init__", slow)
    with LmdbStore.open(path) as store:
        assert store._env.lmdb is not moments[0]
        assert len(shared._registry) >= 1
    assert everything(path) == before


WAITS = """
import fcntl, sys
lock = open(sys.argv[1], "r+b")
print("waits", flush=True)
fcntl.lockf(lock, fcntl.LOCK_SH, 1)
print("has it", flush=True)
sys.stdin.read()
"""


@contextmanager
def who_waits(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for ``lock.mdb`` as LMDB does, and keeps it."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITS, path / "lock.mdb"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"waits\n"
        try:
            yield child
        finally:
            child.communicate()


def blocked(pid: int) -> bool:
    """Whether the process waits for a lock: its line in /proc/locks has an arrow."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f" {pid} " in line for line in lines)


@contextmanager
def one_waits_at_the_rename(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compaction in the block finds somebody waiting, who has the lock file until its end."""
    real = compaction._replace
    with contextlib.ExitStack() as waiting:

        def replace(copied: Path, data: Path, head: int) -> None:
            child = waiting.enter_context(who_waits(path))
            while not blocked(child.pid):
                time.sleep(0.01)
            real(copied, data, head)

        monkeypatch.setattr(compaction, "_replace", replace)
        yield


@pytest.mark.parametrize("more", [0, 1])
def test_who_waits_for_the_lock_file_costs_no_commit(tmp_path: Path, monkeypatch, more) -> None:
    """Its parity says which meta page counts, so one of two would show an old number."""
    path = tmp_path / "vault"
    fill(path)
    with LmdbStore.open(path) as store:
        for number in range(more):
            with store.write() as writer:
                writer.put("meta", b"more", b"%d" % number)
        with store.write() as writer:
            writer.append(b"payload", 1, 6)
    before = everything(path)
    with one_waits_at_the_rename(path, monkeypatch):
        compaction.compact(path)
        assert everything(path) == before
    assert everything(path) == before


def test_a_lock_file_of_the_file_before_is_written_with_by_nobody(
    tmp_path: Path, monkeypatch
) -> None:
    """A compaction is killed behind its rename, while somebody waits for the lock file."""
    path = tmp_path / "vault"
    fill(path)
    before = everything(path)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compaction, "_renumber", killed)
    with one_waits_at_the_rename(path, monkeypatch):
        with pytest.raises(KeyboardInterrupt):
            compaction.compact(path)
        with pytest.raises(Busy, match="since it was compacted") as refused:
            LmdbStore.open(path)
        assert refused.value.reason == "stale-lock"
    assert everything(path) == before


def test_a_large_index_comes_out_dense(tmp_path: Path) -> None:
    path = tmp_path / "vault"
    count = 60_000
    rng = random.Random(3)
    with LmdbStore.create(path, OPTIONS) as store:
        for _ in range(6):
            with store.write() as writer:
                for number in range(count // 6):
                    writer.put("index", rng.randbytes(32), tables.pack_location(number + 1))
        with store.read() as reader:
            took = reader.table_bytes()["index"]
    before = everything(path)
    compaction.compact(path)
    assert everything(path) == before
    with LmdbStore.open(path) as store, store.read() as reader:
        assert reader.table_bytes()["index"] < 0.9 * took, "pages come out full"


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "vault"
    fill(path)
    (path / ".compact-left").mkdir()
    (path / ".compact-left" / "data.mdb").write_bytes(b"half")
    compaction.compact(path)
    assert not list(path.glob(".compact-*"))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A vault in which every table that is damaged below has rows."""
    path = tmp_path / "vault"
    with LmdbStore.create(path, OPTIONS) as store:
        for number in range(40):
            with store.write() as writer:
                writer.add_frames([framed([block(number * 50 + n) for n in range(50)])])
                writer.append(b"payload %d" % number, 1, number)
                writer.put("refs", b"row %06d" % number, b"%d" % number)
    return path


def key_of_a_row(data: bytes, table: str) -> Span:
    """Where the key of a row lies that has many others behind it."""
    there = PageMap(data)
    keys = []
    for span in there.of_kind("key"):
        behind = there.span_at(span.stop)
        # In a branch another node follows, or the next page.
        row = behind is not None and behind.kind in ("value", "header") and span.stop % PAGE
        if span.table == table and row:
            keys.append(span)
    keys.sort(key=lambda span: data[span.start : span.stop])
    assert len(keys) > 30
    return keys[len(keys) // 4]


def refused(path: Path, damaged: bytearray, table: str) -> None:
    """Compacting these bytes tells of the table, and leaves all as it is."""
    (path / "data.mdb").write_bytes(damaged)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(Damaged, match=f"'{table}' is damaged.*Nothing was changed") as error:
        compaction.compact(path)
    assert error.value.reason == "structure-damaged"
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@pytest.mark.parametrize(
    ("table", "byte", "bit"),
    [("frames", 5, 0), ("log", 5, 0), ("index", 0, 7), ("refs", 0, 7)],
)
def test_rows_behind_a_damaged_key_are_not_dropped(
    whole: Path, table: str, byte: int, bit: int
) -> None:
    sound = (whole / "data.mdb").read_bytes()
    damaged = bytearray(sound)
    damaged[key_of_a_row(sound, table).start + byte] ^= 1 << bit
    refused(whole, damaged, table)


def test_rows_that_a_damaged_page_lost_are_missed(whole: Path) -> None:
    """A page says that it has one row less; those that it shows are in order."""
    sound = (whole / "data.mdb").read_bytes()
    damaged = bytearray(sound)
    page = key_of_a_row(sound, "refs").start // PAGE * PAGE
    damaged[page + 12] -= 2  # where its list of nodes ends
    refused(whole, damaged, "refs")


def test_a_failed_copy_leaves_everything(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "vault"
    _, before = fill(path)
    monkeypatch.setattr(compaction.lmdb_verify, "verify", lambda _: ["page 3 is lost"])
    with pytest.raises(Exception, match="not whole"):
        compaction.compact(path)
    assert everything(path) == before
    assert not list(path.glob(".compact-*"))


def test_root_gives_away_no_file_that_took_the_place_of_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid():
        skip("only root can give files away")
    path, verify = tmp_path / "vault", compaction.lmdb_verify.verify
    fill(path)
    secret = path / "secret"
    secret.write_bytes((path / shared.DATA).read_bytes())
    secret.chmod(0o600)
    os.chown(path, 1234, 4321)

    def swapped(copied: Path) -> Iterator[object]:
        yield from verify(copied)
        copied.parent.rename(path / "away")
        copied.parent.mkdir()
        secret.rename(copied)

    monkeypatch.setattr(compaction.lmdb_verify, "verify", swapped)
    compaction.compact(path)
    assert (path / shared.DATA).stat().st_uid == 0
