"""What was read of a mapped file does not stay in the process's memory, and is not lost either."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockvault.store import residency
from blockvault.store.env import LmdbStore
from blockvault.store.residency import LIMIT, LOOK_EVERY, Residency

SIZE = 8 << 20
EVERYTHING = 1 << 50


class Mapped:
    """A file that is mapped as LMDB maps its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = os.urandom(SIZE)
        path.write_bytes(self.data)
        with path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), SIZE)

    def touch(self) -> None:
        assert self.map[:] == self.data

    @property
    def start(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    @property
    def resident(self) -> int:
        """How much of it is in this process's memory."""
        mine = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0]:
                mine = line.endswith(str(self.path))
            elif mine and line.startswith("Rss:"):
                return int(line.split()[1]) << 10
        raise AssertionError("it is not mapped")


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Mapped]:
    made = Mapped(tmp_path / "data")
    yield made
    made.map.close()


@pytest.fixture
def counter(mapped: Mapped, monkeypatch: pytest.MonkeyPatch) -> Iterator[Residency]:
    monkeypatch.setattr(residency, "_allowed", 0)
    made = Residency(mapped.path, SIZE)
    yield made
    made.close()


def read_enough(counter: Residency) -> None:
    """Count as much as makes it look, and have it look."""
    counter.note(LOOK_EVERY)
    counter.settle()


def test_what_was_read_is_dropped_and_can_be_read_again(mapped: Mapped, counter: Residency) -> None:
    for _ in range(3):
        mapped.touch()
        assert mapped.resident == SIZE
        read_enough(counter)
        assert mapped.resident == 0
    mapped.touch()


def test_nothing_is_dropped_while_as_much_is_allowed(mapped: Mapped, counter: Residency) -> None:
    residency.allow(EVERYTHING)
    mapped.touch()
    read_enough(counter)
    assert mapped.resident == SIZE


def test_nobody_looks_before_enough_was_read(mapped: Mapped, counter: Residency) -> None:
    mapped.touch()
    counter.note(LOOK_EVERY - 1)
    counter.settle()
    assert mapped.resident == SIZE


def test_where_the_file_lies_is_asked_once_and_anew_after_the_end(
    mapped: Mapped, counter: Residency, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    ask = residency._mapped_at

    def count(path: Path, span: int) -> int | None:
        asked.append(path)
        return ask(path, span)

    def drop() -> None:
        mapped.touch()
        read_enough(counter)
        assert mapped.resident == 0

    monkeypatch.setattr(residency, "_mapped_at", count)
    drop()
    drop()
    assert asked == [mapped.path]
    counter.close()
    drop()
    assert asked == [mapped.path] * 2


def test_a_file_that_is_not_mapped_costs_others_nothing(mapped: Mapped, counter: Residency) -> None:
    other = mapped.path.with_name("other")
    other.write_bytes(bytes(SIZE))
    alone = Residency(other, SIZE)
    mapped.touch()
    read_enough(alone)
    assert mapped.resident == SIZE
    alone.close()
    read_enough(counter)
    assert mapped.resident == 0


def test_what_has_the_same_inode_number_elsewhere_is_left_alone(
    mapped: Mapped, counter: Residency, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A library of another file system, mapped at lower addresses."""
    library = f"20000000000-20000200000 r-xp 00000000 08:01 {mapped.path.stat().st_ino} /lib/some\n"
    maps = tmp_path / "maps"
    maps.write_text(library + Path("/proc/self/maps").read_text())
    monkeypatch.setattr(residency, "_MAPS", maps)
    dropped: list[tuple[int, int]] = []
    monkeypatch.setattr(residency, "_drop", lambda *what: dropped.append(what))
    read_enough(counter)
    assert dropped == [(mapped.start, SIZE)]


def test_the_map_of_a_store_is_found(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "_allowed", 0)
    dropped: list[tuple[int, int]] = []
    monkeypatch.setattr(residency, "_drop", lambda *what: dropped.append(what))
    read_enough(store._env.residency)
    assert [length for _, length in dropped] == [(store.path / "data.mdb").stat().st_size]


def test_who_serves_guests_keeps_more() -> None:
    program = (
        "from blockvault.cli import tuning; from blockvault.store import residency\n"
        "print(residency._allowed); tuning.for_months(); print(residency._allowed, tuning.MAPPED)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    before, after, told = map(int, done.stdout.split())
    assert LIMIT == before < after == told


def test_a_map_is_found_beside_one_of_a_file_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"data"):
        mapped = Mapped(tmp_path / os.fsdecode(name))
        assert residency._mapped_at(mapped.path, SIZE) == mapped.start
