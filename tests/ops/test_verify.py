"""verify: what it finds, what it says is touched, and its partial runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest

from blockvault.ids import ZERO_ID, object_id
from blockvault.model import tree
from blockvault.model.retention import Policy
from blockvault.ops import (
    attachments,
    base,
    check,
    check_frames,
    check_trees,
    damage,
    forget,
    gc,
    needed,
    prune,
    silent,
)
from blockvault.ops.check_frames import Scan
from blockvault.ops.report import Report
from blockvault.store import tables
from blockvault.store.eventlog import Record
from blockvault.store.readtxn import LmdbReader
from blockvault.vault import Vault

BLOCK = 4096


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(BLOCK)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """Three snapshots; block 0 is in all, block 100 in the last two, block 200 in the last."""
    with Vault.create(tmp_path) as vault:
        with vault.session("main") as session:
            device = session.create_volume("vda", 300 * BLOCK)
            for number in range(3):
                device.write(number * 100 * BLOCK, noise(number))
                session.flush()
                session.snapshot(f"s{number}")
        yield vault


def spoil(vault: Vault, data: bytes) -> bytes:
    """Flip a bit of a stored object, behind the vault's back: frames of noise are raw."""
    oid = object_id(data)
    with vault.store.write() as writer:
        place = writer.locate([oid])[0]
        assert place is not None
        number = place >> tables.SLOT_BITS
        frame = bytearray(writer.frame(number) or b"")
        frame[frame.index(data) + 7] ^= 1
        writer._txn.put(tables.integer_key(number), bytes(frame), db=writer._dbs["frames"])
    vault.objects.close()
    return oid


def lose(vault: Vault, data: bytes) -> bytes:
    lose_object(vault, object_id(data))
    return object_id(data)


def lose_object(vault: Vault, oid: bytes) -> None:
    with vault.store.write() as writer:
        writer.unindex([oid])
    vault.objects.close()


def spans(report: check.Report) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for each in report.touched:
        assert each.volume == "vda"
        found.setdefault(each.revision, []).append((each.offset, each.length))
    return found


def test_a_sound_vault_touches_nothing(vault: Vault) -> None:
    report = check.verify(vault)
    assert (report.ok, report.touched, report.lost) == (True, [], frozenset())


@pytest.mark.parametrize("harm", [spoil, lose])
def test_what_a_lost_block_touches_is_told(vault: Vault, harm) -> None:
    ids = [snapshot.id.hex()[:12] for snapshot in vault.log()][::-1]
    oid = harm(vault, noise(1))
    report = check.verify(vault)
    assert report.lost == {oid}
    found = spans(report)
    assert {revision for revision in found if revision in ids} == set(ids[1:])
    assert {span for some in found.values() for span in some} == {(100 * BLOCK, BLOCK)}


def test_a_lost_node_touches_all_that_it_covered(vault: Vault) -> None:
    root = vault.resolve("main").volumes[0].root
    with vault.store.write() as writer:
        writer.unindex([root])
    vault.objects.close()
    report = check.verify(vault)
    assert not report.ok
    assert spans(report)[vault.resolve("main").tip.hex()[:12]] == [(0, 300 * BLOCK)]


def lose_first_leaf(vault: Vault) -> bytes:
    """Lose the leaf of block 0, which all three states share."""
    leaf = tree.children(vault.objects.get(vault.resolve("main").volumes[0].root))[0]
    with vault.store.write() as writer:
        writer.unindex([leaf])
    vault.objects.close()
    return leaf


def test_beside_a_lost_node_other_losses_are_told(vault: Vault) -> None:
    lost = {lose_first_leaf(vault), lose(vault, noise(1)), lose(vault, noise(2))}
    report = check.verify(vault)
    assert report.lost == lost
    assert len(report.problems) == len(lost), "each is told once, however many states share it"
    tip = vault.resolve("main").tip.hex()[:12]
    assert {offset // BLOCK for offset, _ in spans(report)[tip]} == {0, 100, 200}


def test_a_lost_node_of_older_states_does_not_end_a_look_at_the_newer(vault: Vault) -> None:
    since = f"main@{{#{vault.resolve('main~1').seq}}}"
    lost = {lose_first_leaf(vault), spoil(vault, noise(2))}
    assert check.verify(vault, since=since).lost == lost


def test_a_lost_block_of_a_write_after_the_last_snapshot_is_told(vault: Vault) -> None:
    with vault.session("main") as session:
        session.device("vda").write(50 * BLOCK, noise(99) + noise(100))
        session.flush()
    lost = {lose(vault, noise(99)), lose(vault, noise(100))}
    report = check.verify(vault)
    assert report.lost == lost
    (one,) = report.touched
    assert one[2:] == ("vda", 50 * BLOCK, 2 * BLOCK, 2)
    assert one.object == object_id(noise(99))
    assert vault.resolve(one.revision, exact=True).name == "main"


def test_neighbours_are_one_range_in_each_state(vault: Vault) -> None:
    """However many are lost in however many states, what is told of that fits in memory."""
    with vault.session("main") as session:
        device = session.device("vda")
        device.write(50 * BLOCK, b"".join(noise(1000 + number) for number in range(40)))
        for number in range(5):
            device.write(0, noise(2000 + number))
            session.snapshot()
    lost = {lose(vault, noise(1000 + number)) for number in range(40)}
    report = check.verify(vault)
    assert report.lost == lost
    assert {each[2:] for each in report.touched} == {("vda", 50 * BLOCK, 40 * BLOCK, 40)}
    assert {snapshot.id.hex()[:12] for snapshot in islice(vault.log(), 5)} <= set(spans(report))
    assert report.touched == sorted(report.touched, key=lambda each: each.revision)


def test_the_last_of_many_ranges_holds_all_that_follow(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "RANGES", 2)
    for number in range(3):
        lose(vault, noise(number))
    tip = vault.resolve("main").tip.hex()[:12]
    found = [each[3:] for each in check.verify(vault).touched if each.revision == tip]
    assert found == [(0, BLOCK, 1), (100 * BLOCK, 101 * BLOCK, 2)]


def test_since_reads_what_came_later_and_only_that(vault: Vault) -> None:
    old, new = noise(0), noise(2)
    since = f"main@{{#{vault.resolve('main~1').seq}}}"
    assert check.verify(vault, since=since).ok
    spoil(vault, old)
    assert check.verify(vault, since=since).ok, "that block is older"
    assert not check.verify(vault).ok
    oid = spoil(vault, new)
    report = check.verify(vault, since=since)
    assert report.lost == {oid}
    assert spans(report)


def test_a_revision_includes_the_files_kept_with_it(vault: Vault) -> None:
    with vault.session() as session, vault.guard():
        session.snapshot("full", attachments=attachments.keep(vault, {"memory": noise(50)}))
    assert check.verify(vault, "main").ok
    oid = spoil(vault, noise(50))
    report = check.verify(vault, "main")
    (problem,) = report.problems
    assert "of volume 'memory': " in problem.message
    assert {(each.volume, each.offset) for each in report.touched} == {("memory", 0)}
    assert check.verify(vault, "main~1").ok
    lose_object(vault, oid)
    report = check.verify(vault, "main", fast=True)
    assert report.lost == {oid}
    assert {(each.volume, each.offset) for each in report.touched} == {("memory", 0)}


def test_a_revision_includes_what_was_written_since(vault: Vault) -> None:
    with vault.session() as session:
        session.device("vda").write(50 * BLOCK, noise(60))
    assert check.verify(vault, "main", fast=True).ok
    oid = lose(vault, noise(60))
    assert check.verify(vault, "main", fast=True).lost == {oid}
    assert check.verify(vault, "main~0", fast=True).ok
    assert check.verify(vault, "main").lost == {oid}
    assert check.verify(vault, "main~0").ok


def test_beside_a_lost_node_of_a_revision_all_is_read(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_trees, "_TOGETHER", 2)
    with vault.session() as session:
        session.device("vda").write(250 * BLOCK, noise(1))
        session.snapshot("the same block twice")
        session.device("vda").write(50 * BLOCK, noise(60))
    lost = {lose_first_leaf(vault), lose(vault, noise(1))}
    lost |= {spoil(vault, noise(2)), spoil(vault, noise(60))}
    report = check.verify(vault, "main")
    assert report.lost == lost
    assert len(report.problems) == len(lost), "each is told once"


def test_a_revision_that_lost_a_node_is_told(vault: Vault) -> None:
    lose_object(vault, vault.resolve("main").volumes[0].root)
    (problem,) = check.verify(vault, "main").problems
    assert problem.kind == "object-missing"


@pytest.mark.parametrize("what", ["snapshot", "tree", "memory"])
def test_since_reads_what_came_with_snapshots(vault: Vault, what: str) -> None:
    """A tag of a moment between snapshots makes one that no branch has."""
    before = f"main@{{#{vault.branch('main').seq}}}"
    with vault.session() as session:
        session.device("vda").write(50 * BLOCK, noise(60))
        session.flush()
        vault.tag("moment", f"main@{{#{vault.branch('main').seq}}}")
        session.device("vda").write(50 * BLOCK, noise(61))
        with vault.guard():
            session.snapshot("full", attachments=attachments.keep(vault, {"memory": noise(62)}))
        session.device("vda").write(51 * BLOCK, noise(63))
    after = f"main@{{#{vault.branch('main').seq}}}"
    assert check.verify(vault, since=before).ok
    moment = vault.resolve("moment")
    assert moment.snapshot is not None
    assert not moment.branch
    objects = {
        "snapshot": moment.snapshot,
        "tree": moment.volumes[0].root,
        "memory": object_id(noise(62)),
    }
    lose_object(vault, objects[what])
    assert {each.kind for each in check.verify(vault, since=before).problems} == {"object-missing"}
    if what == "memory":
        assert check.verify(vault, since=after).ok, "no longer new"


def test_a_sample_reads_a_part(vault: Vault) -> None:
    with vault.session("main") as session:
        for number in range(60):
            session.device("vda").write(number * BLOCK, noise(1000 + number))
            session.flush()
    whole = check.verify(vault)
    parts = [check.verify(vault, scan=Scan(sample=0.3)) for _ in range(8)]
    assert all(part.ok for part in parts)
    assert all(0 <= part.objects < whole.objects for part in parts)
    assert 0.1 < sum(part.objects for part in parts) / whole.objects / 8 < 0.6


def test_a_sample_reads_nothing_of_the_other_frames(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    frame, walk = LmdbReader.frame, LmdbReader.frames

    def one(reader: LmdbReader, number: int) -> bytes | None:
        read.append(number)
        return frame(reader, number)

    def several(reader: LmdbReader, start: int = 0) -> Iterator[tuple[int, bytes]]:
        for number, data in walk(reader, start):
            read.append(number)
            yield number, data

    with vault.read() as reader:
        numbers = reader.frame_numbers(0, 1000)
    monkeypatch.setattr(LmdbReader, "frame", one)
    monkeypatch.setattr(LmdbReader, "frames", several)
    turns = count()
    monkeypatch.setattr(check_frames.FrameCheck, "_takes", lambda _: next(turns) % 3 == 1)
    report = Report()
    check_frames.FrameCheck(vault, report, Scan(sample=0.5)).check(silent)
    assert report.ok
    assert read == numbers[1::3] != []


def test_an_interrupted_verify_goes_on(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_frames, "_FRAMES_A_BATCH", 1)
    monkeypatch.setattr(check_frames, "_NOTE_EVERY", 1)
    whole = check.verify(vault)
    seen = 0

    def interrupt(done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.verify(vault, progress=interrupt)
    assert (vault.path / check_frames.STATE).exists()
    assert check.verify(vault, scan=Scan(sample=0.5)).ok, "which has nothing to do with it"
    rest = check.verify(vault, scan=Scan(resume=True))
    assert rest.ok
    assert 0 < rest.objects < whole.objects
    assert not (vault.path / check_frames.STATE).exists()
    assert check.verify(vault, scan=Scan(resume=True)).objects == whole.objects


def test_a_rate_is_kept(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(check_frames.time, "sleep", slept.append)
    check.verify(vault, scan=Scan(rate=1000))
    assert max(slept) > 5


@pytest.mark.parametrize("collected", [False, True])
def test_what_is_forgotten_during_the_walk_is_no_damage(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, collected: bool
) -> None:
    """A prune comes after the first record was met; a collection has taken records, or has not."""
    walk, policy = base.records, Policy(last=1, events=0)
    with vault.session() as session:
        for number in range(4):
            session.device().write(0, noise(100 + number))
            session.snapshot(f"{number}")
    forget.execute(vault, prune.plan(vault, policy))
    before = list(walk(vault))

    def records(vault: Vault) -> Iterator[Record]:
        monkeypatch.setattr(base, "records", walk)
        yield before[0]
        with vault.session() as session:
            session.device().write(0, noise(200))
            session.snapshot("since")
        forget.execute(vault, prune.plan(vault, policy))
        gc.collect(vault)
        yield from before[1:] if collected else walk(vault)

    monkeypatch.setattr(base, "records", records)
    report = check.Report()
    check._Roots(vault, report)._log({})
    assert not report.problems


def test_few_objects_of_many_are_not_sought_by_reading_the_index(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    with vault.session() as session:
        session.device().write(0, random.Random(5).randbytes(299 * BLOCK))
        session.snapshot("many")
    named = [object_id(noise(number)) for number in range(3)]
    gone = object_id(b"nobody has this")
    walked: list[int] = []
    walk = LmdbReader.index_entries
    monkeypatch.setattr(
        LmdbReader, "index_entries", lambda self, part: walked.append(part) or walk(self, part)
    )
    monkeypatch.setattr(needed, "worth_a_walk", lambda count, rows: count > 1)
    tested = needed.Needed(vault)
    tested.add([ZERO_ID, *named])
    assert tested.missing() == []
    assert walked == []
    tested.add([gone, *named])
    assert tested.missing() == [gone]
    assert walked == [gone[0]]


def test_what_is_named_again_and_again_is_looked_up_once(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    look = needed.Needed._absent

    def absent(self: needed.Needed, first: int, ids: set[bytes]) -> set[bytes]:
        looks.extend([first] if ids else [])
        return look(self, first, ids)

    monkeypatch.setattr(needed.Needed, "_absent", absent)
    monkeypatch.setattr(needed, "_AT_A_TIME", 100)
    tested = needed.Needed(vault)
    for _ in range(300):
        tested.add([object_id(noise(1))])
    assert tested.missing() == []
    assert len(looks) == 1


def test_frames_stored_meanwhile_are_no_problem(vault: Vault) -> None:
    session = vault.session("main")
    written = 0

    def write(done: int, total: int) -> None:
        nonlocal written
        written += 1
        session.device("vda").write((written % 300) * BLOCK, noise(5000 + written))
        if written < 5:
            session.flush()

    assert check.verify(vault, progress=write).ok
    session.close()
