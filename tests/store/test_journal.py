"""The journal of a branch: what was appended is found again, and what is torn or missing shows."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault.encoding import pack
from blockvault.errors import Damaged, IOFailed, NoSpace
from blockvault.store import filesystem, journal
from blockvault.store.journal import PAGE, Journal

BRANCH = 7
HALF = 8 * PAGE


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.create(tmp_path, BRANCH, HALF)
    yield opened
    opened.close()


def found(vault: Path, stored: int | None = None) -> list[tuple[int, int, list[object]]]:
    """What the next session finds, as plain values."""
    opened = Journal.find(vault, BRANCH)
    assert opened is not None
    try:
        return [(e.first, e.stop, list(e.rows)) for e in opened.entries(stored)]
    finally:
        opened.close()


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_nothing_is_there_before_and_after(tmp_path: Path, made: Journal) -> None:
    assert journal.left_behind(tmp_path) == [BRANCH]
    assert found(tmp_path) == []
    made.remove()
    assert journal.left_behind(tmp_path) == []
    assert Journal.find(tmp_path, BRANCH) is None
    assert journal.left_behind(tmp_path / "nowhere") == []


def test_entries_come_back_in_order(tmp_path: Path, made: Journal) -> None:
    assert made.append(3, 5, [b"three", b"four"], 3)
    assert made.append(5, 5, [b"a barrier alone"], 3)
    assert made.append(5, 6, [b"five" * 2000], 3)
    every = [(3, 5, [b"three", b"four"]), (5, 5, [b"a barrier alone"]), (5, 6, [b"five" * 2000])]
    assert found(tmp_path) == every
    assert found(tmp_path, 3) == every
    assert found(tmp_path, 4) == every, "a record of which the tables have a part"
    assert found(tmp_path, 5) == every[1:]
    assert found(tmp_path, 6) == []


def test_records_begin_at_pages(tmp_path: Path, made: Journal) -> None:
    """A write that is torn must not touch what was promised before it."""
    for number in range(3):
        made.append(number, number + 1, [b"x" * 100], 0)
    data = made.path.read_bytes()
    starts = [at for at in range(PAGE, len(data), 4) if data[at : at + 4] == b"bvjr"]
    assert starts == [PAGE, 2 * PAGE, 3 * PAGE]


def test_halves_are_used_in_turn_when_the_tables_have_the_other(
    tmp_path: Path, made: Journal
) -> None:
    stored = number = 0
    for _ in range(5):
        while made.append(number, number + 1, [number], stored):
            number += 1
            expected = [(n, n + 1, [n]) for n in range(stored, number)]
            assert found(tmp_path, stored) == expected
        assert number - stored >= 8
        stored = number - 4
    assert number > 30


def test_a_record_longer_than_a_half_has_no_room(tmp_path: Path, made: Journal) -> None:
    assert not made.append(0, 1, [bytes(HALF)], 0)
    assert made.append(0, 1, [b"short"], 0)
    assert found(tmp_path) == [(0, 1, [b"short"])]


@pytest.mark.parametrize("at", [0, 5, 10, 60])
def test_a_torn_last_record_was_never_promised(tmp_path: Path, made: Journal, at: int) -> None:
    made.append(0, 1, [b"promised"], 0)
    made.append(1, 2, [b"torn" * 100], 0)
    flip(made.path, 2 * PAGE + at)
    assert found(tmp_path) == [(0, 1, [b"promised"])]


def test_what_is_missing_in_the_middle_is_damage(tmp_path: Path, made: Journal) -> None:
    number = 0
    while made.append(number, number + 1, [number], 0):
        number += 1
    assert number == 16, "both halves are full"
    flip(made.path, PAGE + 20)
    with pytest.raises(Damaged, match="entry 0 is missing"):
        found(tmp_path, 0)
    assert found(tmp_path, 8)[0] == (8, 9, [8]), "the tables have what is damaged"


@pytest.mark.parametrize("bad", [0, 3, 7, 8, 12, 14])
@pytest.mark.parametrize("at", [0, 5, 10, 33])
def test_a_damaged_record_before_whole_ones_is_damage(
    tmp_path: Path, made: Journal, bad: int, at: int
) -> None:
    for number in range(16):
        made.append(number, number + 1, [number], 0)
    flip(made.path, PAGE + bad * PAGE + at)
    for stored in (None, 0, bad):
        with pytest.raises(Damaged, match="is missing"):
            found(tmp_path, stored)
    rest = [(number, number + 1, [number]) for number in range(bad + 1, 16)]
    assert found(tmp_path, bad + 1) == rest, "the tables have what is damaged"


def test_a_length_that_no_record_has_is_not_looked_up(
    tmp_path: Path, made: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a guest wrote may say so on each page of a record that is torn."""
    monkeypatch.setattr(journal, "RECORD_BYTES", 4 * PAGE)
    longest = bytes(4 * PAGE - 32 - len(pack([0, 1, bytes(PAGE)])) + PAGE)
    assert not made.append(0, 1, [longest + b"-"], 0)
    assert made.append(0, 1, [longest], 0)
    assert found(tmp_path) == [(0, 1, [longest])]
    page = (b"bvjr" + (4 * PAGE - 31).to_bytes(4, "little")).ljust(PAGE, b"-")
    with made.path.open("r+b") as file:
        file.seek(PAGE)
        file.write(page * 8)
    monkeypatch.setattr(Journal, "_check", lambda *_: pytest.fail("it hashed"))
    assert found(tmp_path) == []


def test_what_is_damaged_of_a_long_record_is_missing_too(tmp_path: Path, made: Journal) -> None:
    """The search goes on within the record, whose pages look like anything."""
    made.append(0, 1, [b"--" + b"bvjr" * 3 * (PAGE // 4)], 0)
    made.append(1, 2, [b"behind it"], 0)
    assert made.path.read_bytes()[2 * PAGE :].startswith(b"bvjr")
    flip(made.path, PAGE + 2 * PAGE + 100)
    with pytest.raises(Damaged, match="entry 0 is missing"):
        found(tmp_path, 0)
    assert found(tmp_path, 1) == [(1, 2, [b"behind it"])]


def test_a_torn_record_before_those_of_an_earlier_use_was_never_promised(
    tmp_path: Path, made: Journal
) -> None:
    """A half that the tables have is used again, and the power goes during its second record."""
    for number in range(16):
        made.append(number, number + 1, [number], 0)
    made.append(16, 17, [b"promised"], 12)
    made.append(17, 18, [b"torn"], 12)
    flip(made.path, 2 * PAGE + 40)
    assert found(tmp_path, 12) == [
        *((number, number + 1, [number]) for number in range(12, 16)),
        (16, 17, [b"promised"]),
    ]
    flip(made.path, PAGE + 40)
    assert found(tmp_path, 12)[-1] == (15, 16, [15]), "as if the first one had been torn"
    flip(made.path, 2 * PAGE + 40)
    with pytest.raises(Damaged, match="entry 16 is missing"):
        found(tmp_path, 12)


def test_a_creation_that_was_cut_short_promised_nothing(tmp_path: Path, made: Journal) -> None:
    for size in (0, 100, PAGE, PAGE + HALF):
        made.path.write_bytes(bytes(size))
        assert Journal.find(tmp_path, BRANCH) is None
        assert journal.left_behind(tmp_path) == []


@pytest.mark.parametrize("at", [0, 26])
def test_a_header_that_is_none_is_damage(tmp_path: Path, made: Journal, at: int) -> None:
    flip(made.path, at)
    with pytest.raises(Damaged):
        found(tmp_path)
    assert made.path.exists()


def test_a_disk_without_room_gets_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoSpace):
        Journal.create(tmp_path, BRANCH, HALF)
    assert journal.left_behind(tmp_path) == []


def test_a_disk_with_little_room_keeps_it_for_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = PAGE + 2 * HALF
    real = os.statvfs(tmp_path)

    def free(blocks: int) -> None:
        left = os.statvfs_result((512, 512, *real[2:4], blocks, *real[5:]))
        monkeypatch.setattr(os, "statvfs", lambda path: left)

    free(2 * size // 512)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: pytest.fail("it wrote"))
        with pytest.raises(NoSpace):
            Journal.create(tmp_path, BRANCH, HALF)
    assert journal.left_behind(tmp_path) == []
    free(4 * size // 512)
    Journal.create(tmp_path, BRANCH, HALF).close()
    assert journal.left_behind(tmp_path) == [BRANCH]


def test_a_write_that_fails_is_told(made: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(IOFailed):
        made.append(0, 1, [b"x"], 0)


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, "no disk")


def test_a_journal_that_cannot_be_removed_is_told(
    tmp_path: Path, made: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short = tmp_path / "other"
    (cut_short / "journals").mkdir(parents=True)
    journal.path_of(cut_short, BRANCH).write_bytes(bytes(PAGE))
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(IOFailed, match="no disk"):
        made.remove()
    with pytest.raises(IOFailed, match="no disk"):
        Journal.find(cut_short, BRANCH)
    monkeypatch.setattr(filesystem, "sync_path", refuse)
    with pytest.raises(IOFailed, match="no disk"):
        Journal.create(tmp_path / "other", BRANCH, HALF)
