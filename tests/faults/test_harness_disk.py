"""The model of a disk with a cache, and the cuts enumerated from a trace."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tools.faults.crash import Cut, Replay, choose, enumerate_cuts, promises
from tools.faults.disk import (
    ROOT,
    WHOLE,
    Disk,
    Entry,
    Image,
    Make,
    Mark,
    Move,
    Op,
    Punch,
    Remove,
    Resize,
    Sync,
    Write,
    sectors,
)

A, B, DIR = 10, 11, 20


def disk_after(*ops: Op) -> Disk:
    disk = Disk()
    for op in ops:
        disk.apply(op)
    return disk


def kept_nothing(disk: Disk) -> dict[str, bytes | None]:
    return frozen(disk.survivors({}))


def frozen(image: Image) -> dict[str, bytes | None]:
    return {name: None if data is None else bytes(data) for name, data in image.tree().items()}


def everything(disk: Disk) -> dict[int, int]:
    return dict.fromkeys(range(len(disk.pending)), WHOLE)


def test_a_write_without_sync_may_be_lost_and_with_sync_not() -> None:
    disk = disk_after(Make(A, ROOT, "a"), Sync(ROOT), Write(A, 0, b"old"), Sync(A))
    disk.apply(Write(A, 0, b"new"))
    assert kept_nothing(disk) == {"a": b"old"}
    assert frozen(disk.survivors(everything(disk))) == frozen(disk.now) == {"a": b"new"}


def test_a_synced_file_without_a_synced_name_is_gone() -> None:
    disk = disk_after(Make(A, ROOT, "a"), Write(A, 0, b"data"), Sync(A))
    assert kept_nothing(disk) == {}
    disk.apply(Sync(ROOT))
    assert kept_nothing(disk) == {"a": b"data"}


def test_a_synced_name_does_not_save_the_data() -> None:
    disk = disk_after(Make(A, ROOT, "a"), Write(A, 0, b"data"), Sync(ROOT))
    assert kept_nothing(disk) == {"a": b""}


def test_later_writes_survive_without_earlier_ones() -> None:
    disk = disk_after(Make(A, ROOT, "a"), Sync(ROOT), Write(A, 0, b"1111"), Write(A, 4, b"2222"))
    assert frozen(disk.survivors({1: WHOLE})) == {"a": b"\0\0\0\x002222"}


def test_a_durable_write_saves_only_itself_and_keeps_its_order() -> None:
    disk = disk_after(Make(A, ROOT, "a"), Sync(ROOT), Write(A, 0, b"xxxx"))
    disk.apply(Write(A, 0, b"D", durable=True))
    assert kept_nothing(disk) == {"a": b"D"}
    assert frozen(disk.survivors({0: WHOLE})) == {"a": b"Dxxx"}


def test_a_durable_write_in_flight_may_be_lost() -> None:
    disk = disk_after(Make(A, ROOT, "a"), Sync(ROOT))
    disk.begin(Write(A, 0, b"D", durable=True))
    assert kept_nothing(disk) == {"a": b""}


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (0b000, b"." * 1200),
        (0b001, b"." * 500 + b"w" * 12 + b"." * 688),
        (0b010, b"." * 512 + b"w" * 512 + b"." * 176),
        (0b100, b"." * 1024 + b"w" * 76 + b"." * 100),
        (WHOLE, b"." * 500 + b"w" * 600 + b"." * 100),
    ],
)
def test_a_torn_write_keeps_whole_sectors(mask: int, expected: bytes) -> None:
    disk = disk_after(Make(A, ROOT, "a"), Sync(ROOT), Write(A, 0, b"." * 1200), Sync(A))
    disk.apply(Write(A, 500, b"w" * 600))
    assert sectors(500, 600) == 3
    assert frozen(disk.survivors({0: mask})) == {"a": expected}


def test_a_rename_is_atomic_and_may_come_late() -> None:
    before = (Make(A, ROOT, "new"), Make(B, ROOT, "name"), Write(A, 0, b"A"), Sync(A), Sync(ROOT))
    disk = disk_after(*before, Move(A, ROOT, "new", ROOT, "name"))
    assert kept_nothing(disk) == {"new": b"A", "name": b""}
    assert frozen(disk.survivors({0: WHOLE})) == {"name": b"A"}


def test_syncing_the_new_parent_brings_all_that_the_move_stands_on() -> None:
    disk = disk_after(Make(DIR, ROOT, "dir", True), Make(A, DIR, "a"), Sync(A))
    disk.apply(Move(DIR, ROOT, "dir", ROOT, "vault"))
    disk.apply(Sync(ROOT))
    assert kept_nothing(disk) == {"vault": None}  # its own names were never synced
    disk.apply(Sync(DIR))
    assert kept_nothing(disk) == {"vault": None, "vault/a": b""}


def test_a_move_between_directories_never_leaves_two_names() -> None:
    disk = disk_after(Make(DIR, ROOT, "dir", True), Sync(ROOT))
    for op in (Make(A, ROOT, "a"), Move(A, ROOT, "a", DIR, "b"), Sync(DIR)):
        disk.apply(op)
    assert kept_nothing(disk) == {"dir": None, "dir/b": b""}
    assert frozen(disk.survivors(everything(disk))) == {"dir": None, "dir/b": b""}


def test_names_of_one_directory_keep_their_order() -> None:
    ops = [Make(n, ROOT, f"f{n}") for n in range(10, 16)]
    for trial in range(200):
        disk = disk_after(*ops)
        image = disk.survivors(choose(disk.pending, random.Random(trial)))
        assert list(frozen(image)) == [f"f{n}" for n in range(10, 10 + len(image.tree()))]


def test_sizes_and_removals_are_pending_too() -> None:
    disk = disk_after(Make(A, ROOT, "a"), Write(A, 0, b"12345"), Sync(A), Sync(ROOT))
    disk.apply(Resize(A, 2))
    disk.apply(Resize(A, 4))
    disk.apply(Remove(ROOT, "a"))
    assert kept_nothing(disk) == {"a": b"12345"}
    assert frozen(disk.survivors({0: WHOLE})) == {"a": b"12"}
    assert frozen(disk.survivors({0: WHOLE, 1: WHOLE})) == {"a": b"12\0\0"}
    assert frozen(disk.survivors({2: WHOLE})) == {}


def test_a_hole_is_pending_too_and_keeps_the_size() -> None:
    before = (Make(A, ROOT, "a"), Write(A, 0, b"x" * 1536), Sync(A), Sync(ROOT))
    disk = disk_after(*before, Punch(A, 0, 4096))
    assert frozen(disk.now) == {"a": bytes(1536)}
    assert kept_nothing(disk) == {"a": b"x" * 1536}
    assert frozen(disk.survivors({0: 0b10})) == {"a": b"x" * 512 + bytes(512) + b"x" * 512}
    disk.apply(Write(A, 512, b"new"))
    assert frozen(disk.survivors({1: WHOLE})) == {"a": b"x" * 512 + b"new" + b"x" * 1021}
    disk.apply(Sync(A))
    assert kept_nothing(disk) == {"a": bytes(512) + b"new" + bytes(1021)}
    kept = {
        choose([Entry(Punch(A, 0, 8192), must=False)], random.Random(n)).get(0) for n in range(99)
    }
    assert {None, WHOLE} < kept, "it may be lost, whole, or torn"


TRACE: list[Op] = [
    Make(A, ROOT, "a"),
    Sync(ROOT),
    Write(A, 0, bytes(2048)),
    Write(A, 2048, b"x" * 2048),
    Sync(A),
    Mark("first"),
    Write(A, 0, b"head", durable=True),
    Mark("second"),
    Write(A, 512, b"tail"),
]


def test_cuts_are_distinct_repeatable_and_cover_the_places_before_every_sync() -> None:
    cuts = enumerate_cuts(TRACE, 60, seed=1)
    assert cuts == enumerate_cuts(TRACE, 60, seed=1)
    assert cuts != enumerate_cuts(TRACE, 60, seed=2)
    assert len(set(cuts)) == len(cuts)
    assert Cut(4, False, ((0, WHOLE), (1, WHOLE))) in cuts
    assert any(cut.at == 6 and cut.in_flight and not cut.kept for cut in cuts)
    assert any(mask not in (WHOLE, 0) for cut in cuts for _, mask in cut.kept)


def test_promises_are_those_before_the_cut() -> None:
    for cut in enumerate_cuts(TRACE, 60, seed=3):
        expected = ["first"] * (cut.at > 5) + ["second"] * (cut.at > 7)
        assert promises(TRACE, cut) == expected


def test_no_cut_breaks_a_promise_of_a_disk_that_syncs() -> None:
    replay = Replay(TRACE)
    for cut in enumerate_cuts(TRACE, 200, seed=4):
        content = frozen(replay.image(cut)).get("a") or b""
        said = promises(TRACE, cut)
        assert "first" not in said or content[2048:] == b"x" * 2048
        assert "second" not in said or content[:4] == b"head"


def test_images_do_not_depend_on_the_order_in_which_they_are_asked_for() -> None:
    cuts = enumerate_cuts(TRACE, 60, seed=5)
    forward, backward = Replay(TRACE), Replay(TRACE)
    there = [frozen(forward.image(cut)) for cut in cuts]
    back = [frozen(backward.image(cut)) for cut in reversed(cuts)]
    assert there == back[::-1]


def test_an_image_is_laid_out_as_files(tmp_path: Path) -> None:
    disk = disk_after(Make(DIR, ROOT, "dir", True), Make(A, DIR, "a"), Write(A, 0, b"data"))
    disk.now.write_to(tmp_path)
    assert (tmp_path / "dir/a").read_bytes() == b"data"
