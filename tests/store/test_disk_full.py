"""A disk that fills up: clear errors, no signal, nothing acknowledged lost, reading goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockvault.errors import NoSpace
from blockvault.ids import object_id
from blockvault.store.env import LmdbStore
from blockvault.store.objects import ObjectReader
from tests.conftest import skip
from tests.store.material import OPTIONS, commit_something, framed, noise, run_python
from tools.faults import smalldisk


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, need_tool: Callable[[str], str]
) -> Iterator[Path]:
    if os.geteuid():
        skip("mounting needs root")
    kind = str(request.param)
    if kind in smalldisk.MKFS:
        need_tool(smalldisk.MKFS[kind][0])
    with smalldisk.mounted(kind, tmp_path, 8 << 20) as path:
        yield path


def add(store: LmdbStore, number: int) -> None:
    with store.write() as writer:
        writer.add_frames([framed([noise(number, 30_000)])])
        writer.append(b"x" * 100, 1, number)


def fill(store: LmdbStore) -> int:
    """Commit until the disk is full; the number of commits that were acknowledged."""
    for number in range(100_000):
        try:
            add(store, number)
        except NoSpace:
            return number
    raise AssertionError("the disk never filled up")


def check(store: LmdbStore, commits: int) -> None:
    ids = [object_id(noise(n, 30_000)) for n in range(commits)]
    assert len(ObjectReader(store).get_many(ids)) == commits
    with store.read() as reader:
        assert len(list(reader.records())) == commits


def test_a_full_disk_is_said_and_what_was_acknowledged_is_there(disk: Path) -> None:
    home = disk / "vault"
    with LmdbStore.create(home, OPTIONS) as store:
        commits = fill(store)
        assert commits > 20
        check(store, commits)
        with pytest.raises(NoSpace):
            add(store, commits)
        check(store, commits)
    with LmdbStore.open(home) as store:
        check(store, commits)


def test_writing_goes_on_when_there_is_room_again(disk: Path) -> None:
    with LmdbStore.create(disk / "vault", OPTIONS) as store:
        ballast = smalldisk.fill(disk, leave=1 << 20)
        commits = fill(store)
        ballast.unlink()
        add(store, commits)
        check(store, commits + 1)


def test_new_readers_in_other_processes_work_on_a_full_disk(disk: Path) -> None:
    home = disk / "vault"
    code = (
        "with LmdbStore.open(sys.argv[1]) as store:\n"
        "    readers = [store.read() for _ in range(1000)]\n"
        "    print(sum(reader.__enter__().last().seq for reader in readers))\n"
    )
    with LmdbStore.create(home, OPTIONS) as store:
        commits = fill(store)
        smalldisk.fill(disk, leave=0)
        ran = run_python(code, home)
        assert (ran.returncode, ran.stdout) == (0, f"{commits * 1000}\n"), ran.stderr


def test_with_a_sparse_lock_file_readers_would_die(disk: Path) -> None:
    """The control: without its blocks, LMDB's reader table is a SIGBUS on a full disk."""
    home = disk / "vault"
    LmdbStore.create(home, OPTIONS).close()
    (home / "lock.mdb").unlink()
    with (home / "lock.mdb").open("wb") as file:
        file.truncate(65664)
    smalldisk.fill(disk, leave=0)
    code = (
        "from blockvault.store import filesystem\n"
        "filesystem.prepare_lock_file = print\n"
        "store = LmdbStore.open(sys.argv[1], readonly=True)\n"
        "[store.read().__enter__() for _ in range(1000)]\n"
    )
    assert run_python(code, home).returncode == -7


def test_opening_without_room_for_the_lock_file_is_said(disk: Path) -> None:
    home = disk / "vault"
    LmdbStore.create(home, OPTIONS).close()
    (home / "lock.mdb").unlink()
    ballast = smalldisk.fill(disk, leave=0)
    with pytest.raises(NoSpace, match="full"):
        LmdbStore.open(home)
    ballast.unlink()
    LmdbStore.open(home).close()


def test_creating_without_room_is_said_and_leaves_nothing(disk: Path) -> None:
    ballast = smalldisk.fill(disk, leave=40_000)
    before = sorted(disk.iterdir())
    with pytest.raises(NoSpace, match="full"):
        LmdbStore.create(disk / "vault", OPTIONS)
    assert sorted(disk.iterdir()) == before
    ballast.unlink()
    with LmdbStore.create(disk / "vault", OPTIONS) as store, store.write() as writer:
        commit_something(writer, 1)
