"""The head file's slots, and what it finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from blockvault.errors import Damaged
from blockvault.store import headfile
from blockvault.store.env import LmdbStore
from blockvault.store.eventlog import Last
from blockvault.store.headfile import HeadFile, Slot
from tests.store.material import commit_something

SLOT = Slot(77, 12345, bytes(range(32)))


def test_a_slot_round_trips_and_every_flipped_bit_voids_it() -> None:
    data = headfile.encode(SLOT)
    assert len(data) == headfile.SLOT_SIZE
    assert headfile.decode(data) == SLOT
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert headfile.decode(bytes(flipped)) is None
    for cut in range(len(data)):
        assert headfile.decode(data[:cut]) is None
    assert headfile.decode(data + b"\0") is None
    assert headfile.decode(bytes(64)) is None


def test_the_newest_valid_slot_counts(tmp_path: Path) -> None:
    head = HeadFile(tmp_path / "head", writable=True)
    assert head.newest() is None
    for number in range(1, 200):
        head.note(number, Last(number * 10, 0, bytes([number]) * 32))
    assert head.newest() == Slot(199, 1990, bytes([199]) * 32)
    assert (tmp_path / "head").stat().st_size == headfile.SLOTS * headfile.SLOT_SIZE
    with (tmp_path / "head").open("r+b") as file:
        file.seek(199 % 64 * 64 + 20)
        file.write(b"torn")
    assert head.newest() == Slot(198, 1980, bytes([198]) * 32)
    head.close()


def write(home: Path, start: int, count: int) -> None:
    with LmdbStore.open(home) as store:
        for number in range(start, start + count):
            with store.write() as writer:
                commit_something(writer, number)


def test_an_older_database_is_noticed(store: LmdbStore, home: Path, tmp_path: Path) -> None:
    store.close()
    write(home, 0, 3)
    shutil.copy(home / "data.mdb", tmp_path / "older")
    write(home, 3, 1)
    shutil.copy(tmp_path / "older", home / "data.mdb")
    with pytest.raises(Damaged, match="ends at event 3, but event 4 was committed") as caught:
        LmdbStore.open(home)
    assert caught.value.reason == "rolled-back"
    with pytest.raises(Damaged):
        LmdbStore.open(home, readonly=True)
    (home / "head").unlink()  # as the message says
    write(home, 3, 2)


def test_another_history_of_the_same_length_is_noticed(
    store: LmdbStore, home: Path, tmp_path: Path
) -> None:
    store.close()
    write(home, 0, 3)
    shutil.copytree(home, tmp_path / "fork")
    write(home, 3, 1)
    write(tmp_path / "fork", 4, 1)
    shutil.copy(tmp_path / "fork" / "data.mdb", home / "data.mdb")
    with pytest.raises(Damaged, match="silently gone back"):
        LmdbStore.open(home)


def test_a_lost_commit_without_events_is_noticed(
    store: LmdbStore, home: Path, tmp_path: Path
) -> None:
    store.close()
    write(home, 0, 3)
    shutil.copy(home / "data.mdb", tmp_path / "older")
    with LmdbStore.open(home) as again, again.write() as writer:
        writer.put("refs", b"x", b"y")
    shutil.copy(tmp_path / "older", home / "data.mdb")
    with pytest.raises(Damaged, match="silently gone back"):
        LmdbStore.open(home)


def test_an_older_or_damaged_head_file_is_no_reason_to_stop(store: LmdbStore, home: Path) -> None:
    store.close()
    write(home, 0, 3)
    older = (home / "head").read_bytes()
    write(home, 3, 3)
    (home / "head").write_bytes(older)
    write(home, 6, 1)
    (home / "head").write_bytes(b"\xff" * 5000)
    write(home, 7, 1)
    (home / "head").write_bytes(b"")
    write(home, 8, 1)
