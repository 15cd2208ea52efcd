"""Collections: killed anywhere they go on, and what is unreachable comes back as free space."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import pytest

from blockvault.encoding import pack, unpack
from blockvault.errors import Busy, Damaged
from blockvault.ids import object_id
from blockvault.model.retention import Policy
from blockvault.ops import check, export, forget, gc, images, ingest, marksfile, prune, rebuild
from blockvault.ops.mark import Marker
from blockvault.ops.marks import Marks
from blockvault.ops.turns import Turns
from blockvault.store import compaction, shared, tables
from blockvault.store.types import Writer
from blockvault.store.writetxn import LmdbWriter
from blockvault.vault import Vault
from tests.oracle import noise

BLOCK = 4096
COUNT = 2000


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """A volume, written anew in part three times; the older snapshots are forgotten."""
    rng = random.Random(1)
    with Vault.create(tmp_path / "v") as vault:
        with vault.session("main") as session:
            device = session.create_volume("vda", COUNT * BLOCK)
            for number in range(COUNT):
                device.write(number * BLOCK, rng.randbytes(BLOCK))
            session.snapshot("all")
            for name in ("second", "third"):
                for number in range(0, COUNT, 3):
                    device.write(number * BLOCK, rng.randbytes(BLOCK))
                session.snapshot(name)
        forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
        yield vault


def content(vault: Vault) -> bytes:
    vault.objects.close()
    return vault.device("main", "vda").read(0, COUNT * BLOCK)


class Killed(BaseException):
    """Nobody catches it."""


def killed_when_it_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a collection end when it has marked something, its marks just written."""

    def note(self: marksfile.MarksFile, seq: int) -> None:
        self.write(seq)
        raise Killed

    monkeypatch.setattr(marksfile.MarksFile, "note", note)


def nodes_read(vault: Vault, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> int:
    """How many nodes a run fetches."""
    count = 0
    get_placed = vault.objects.get_placed

    def counted(placed: list[tuple[int, bytes]]) -> dict[bytes, bytes]:
        nonlocal count
        count += len(placed)
        return get_placed(placed)

    with monkeypatch.context() as patch:
        patch.setattr(vault.objects, "get_placed", counted)
        run()
    return count


def test_a_killed_collection_does_not_mark_again(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(vault)
    fresh = nodes_read(vault, monkeypatch, lambda: gc.plan(vault))
    gc.Collection(vault).mark()  # and then it was killed
    again = gc.Collection(vault)
    assert nodes_read(vault, monkeypatch, again.mark) == 0 < fresh
    done = gc.collect(vault)
    assert done.complete
    assert done.objects >= 2 * COUNT // 3
    assert content(vault) == before
    assert check.verify(vault).problems == []
    assert not (vault.path / "pins" / "marks").exists()
    with vault.read() as reader:
        assert reader.get(tables.META, marksfile.ROW) is None


def test_what_was_pinned_for_a_killed_collection_goes_with_the_next(vault: Vault) -> None:
    """Its marks are taken over, but not the word of who is gone since."""
    vault.create_branch("other", "main")
    with vault.session("other") as session:
        session.device("vda").write(0, noise("other", 8 * BLOCK))
        session.snapshot("other")
    held = vault.pin("other")
    vault.delete_branch("other")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
    gc.Collection(vault).mark()  # and then it was killed
    held.release()
    done = gc.collect(vault)
    assert done.complete
    assert gc.plan(vault).dead == 0
    assert check.verify(vault).problems == []


def marked(vault: Vault) -> tuple[bytes, int]:
    """What a vault needs, one bit for each object; and how many blocks were gathered for that."""
    marks, gathered = Marks(vault), 0

    class Counting(Marker):
        def blocks(self, ids: Iterable[bytes]) -> None:
            nonlocal gathered
            ids = list(ids)
            gathered += len(ids)
            super().blocks(ids)

    Counting(vault, marks).run()
    return marks.parts()[2], gathered


def test_what_another_user_left_is_told_of_until_that_one_collects(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else can remove what a killed command of root's was writing."""
    left = [vault.path / f"{prefix}x" for prefix in (images.DECODED, compaction.BUILDING)]
    for path in left:
        path.mkdir()
        (path / "data").write_bytes(b"data")
    maker = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: maker + 1)
        assert gc.collect(vault).foreign == [str(path) for path in left]
    assert gc.collect(vault).foreign == []
    assert not any(path.exists() for path in left)


def test_of_a_leaf_that_changed_only_the_changes_are_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, versions = 1024, 20
    with Vault.create(tmp_path / "v") as vault:
        with vault.session("main") as session:
            device = session.create_volume("vda", count * BLOCK)
            for number in range(count):
                device.write(number * BLOCK, noise(number, BLOCK))
            for version in range(versions):
                device.write(version * 50 * BLOCK, noise((version,), BLOCK))
                session.snapshot()
        needed, gathered = marked(vault)
        # Once for the tree, and once for the events.
        assert gathered <= 2 * (count + versions)
        monkeypatch.setattr("blockvault.ops.mark.NODES_KEPT", 0)
        assert marked(vault) == (needed, gathered + 31 * (versions - 1))


def test_whatever_is_marked_beside_what_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks come back, leaves move, branches and sizes alternate, and nodes are soon forgotten."""
    rng = random.Random(7)
    with Vault.create(tmp_path / "v") as vault:
        for name in ("main", "other"):
            if name != "main":
                vault.create_branch(name)
            with vault.session(name) as session:
                for number in range(2 if name == "main" else 0):
                    session.create_volume(f"vd{number}", (40 + 1000 * number) * BLOCK)
                for _ in range(12):
                    device = session.device(f"vd{rng.randrange(2)}")
                    for _ in range(rng.randrange(1, 60)):
                        block = rng.randrange(device.size // BLOCK)
                        device.write(block * BLOCK, noise(rng.randrange(100), BLOCK))
                    if rng.random() < 0.5:
                        device.write(0, b"".join(noise(each, BLOCK) for each in range(32)))
                    rng.choice([session.snapshot, session.checkpoint])()
        forget.execute(vault, prune.plan(vault, Policy(last=3, events=0)))
        found = []
        for kept in (0, 1, 7, 1 << 15):
            monkeypatch.setattr("blockvault.ops.mark.NODES_KEPT", kept)
            found.append(marked(vault))
        assert len({needed for needed, _ in found}) == 1
        counts = [gathered for _, gathered in found]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] < counts[0]
        before = {
            name: vault.device(name, "vd1").read(0, 1040 * BLOCK) for name in ("main", "other")
        }
        assert gc.collect(vault).complete
        assert check.verify(vault).problems == []
        vault.objects.close()
        for name, data in before.items():
            assert vault.device(name, "vd1").read(0, 1040 * BLOCK) == data


def test_killed_wherever_it_marks_it_comes_to_the_same(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockvault.model.tree.BATCH", 8)
    monkeypatch.setattr("blockvault.ops.mark.LOOKED_UP_AT_ONCE", 64)
    before, expected = content(vault), gc.plan(vault)
    collection, kills = gc.Collection(vault), 0
    with monkeypatch.context() as patch:
        killed_when_it_marked(patch)
        while True:
            try:
                collection.mark()
                break
            except Killed:
                collection, kills = gc.Collection(vault), kills + 1
    assert kills >= 8
    assert gc._Choice(collection.marks).plan == expected
    assert gc.collect(vault).complete
    assert gc.plan(vault).dead <= gc.LEAVE * expected.dead
    assert content(vault) == before
    assert check.verify(vault).problems == []


def test_writes_between_a_kill_and_the_next_run_stay(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead blocks are written again, and new ones: neither is in the marks that are taken over."""
    dead = vault.device("main", "vda").read(0, BLOCK)
    with vault.session("main") as session:
        session.device("vda").write(0, random.Random(5).randbytes(BLOCK))
        session.snapshot("without")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
    gc.Collection(vault).mark()
    with vault.session("main") as session:
        session.device("vda").write(3 * BLOCK, dead)
        session.device("vda").write(4 * BLOCK, random.Random(6).randbytes(BLOCK))
        session.snapshot("with")
    before = content(vault)
    assert gc.collect(vault).complete
    assert content(vault) == before
    assert before[3 * BLOCK : 4 * BLOCK] == dead
    assert check.verify(vault).problems == []


def test_who_found_the_dead_stored_before_they_were_condemned_is_waited_for(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that one looked up it may name in an event yet."""
    dead = random.Random(1).randbytes(BLOCK)  # what block 0 was at first
    collection, write = gc.Collection(vault), Turns.write
    collection.mark()

    def after_a_look(turns: Turns) -> AbstractContextManager[Writer]:
        if not vault.guards.held:
            early.enter_context(vault.guard())
            assert not vault.new_objects().add_blocks([object_id(dead)], [dead])
        return write(turns)

    monkeypatch.setattr(Turns, "write", after_a_look)
    with ExitStack() as early:
        collection.condemn()
        assert vault.guards.held
        assert not collection.drain(0)
    assert collection.drain(0)


@pytest.mark.parametrize(
    "why", ["pruned", "rebuilt", "spoilt", "of another run", "cut short", "earlier"]
)
def test_marks_that_cannot_be_trusted_are_made_anew(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    gc.Collection(vault).mark()
    path = vault.path / "pins" / "marks"
    marks = path.read_bytes()
    if why == "pruned":
        with vault.session("main") as session:
            session.device("vda").write(0, bytes(BLOCK))
            session.snapshot("later")
        forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
    elif why == "rebuilt":
        with vault.store.write() as writer:
            writer.clear(tables.RUNS)
            oid, place = next(iter(writer.scan(tables.INDEX)))
            writer.delete(tables.INDEX, oid)
            assert place
        assert rebuild.rebuild(vault).index_entries == 1
    elif why == "spoilt":
        path.write_bytes(marks[:-1] + bytes([marks[-1] ^ 1]))
    elif why == "cut short":
        path.write_bytes(marks[: len(marks) // 2])
    elif why == "earlier":
        kept = unpack(marks[32:], "marks")
        data = pack([*kept[:3], *kept[4][:3]])
        path.write_bytes(object_id(data) + data)
    else:
        assert gc.collect(vault).complete
        path.write_bytes(marks)
    again = gc.Collection(vault)
    assert nodes_read(vault, monkeypatch, again.mark) > 0
    assert gc.collect(vault).complete
    assert check.verify(vault).problems == []


def test_a_rebuild_indexes_nothing_that_a_collection_takes_meanwhile(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever writes the same again would find it known, and store nothing."""
    dead = random.Random(1).randbytes(BLOCK)  # what block 0 was at first
    look = rebuild._index_frame

    def beside(*arguments: object) -> None:
        with suppress(Busy):
            gc.collect(vault)
        look(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "_index_frame", beside)
        rebuild.rebuild(vault)
    with vault.session("main") as session:
        session.device("vda").write(BLOCK, dead)
    assert content(vault)[BLOCK : 2 * BLOCK] == dead
    assert gc.collect(vault).complete
    assert content(vault)[BLOCK : 2 * BLOCK] == dead
    assert check.verify(vault).problems == []


# -- rows of the index have no check ---------------------------------------------------------------


def row(vault: Vault, oid: bytes) -> int:
    with vault.read() as reader:
        (place,) = reader.locate([oid])
    assert place is not None
    return place


def under_another_id(vault: Vault, oid: bytes) -> None:
    """A bit of the id in its row is another one."""
    place = row(vault, oid)
    with vault.store.write() as writer:
        writer.unindex([oid])
        wrong = oid[:-1] + bytes([oid[-1] ^ 1])
        writer.put(tables.INDEX, wrong, tables.pack_location(place))


def points_at(place: int) -> Callable[[Vault, bytes], None]:
    def harm(vault: Vault, oid: bytes) -> None:
        with vault.store.write() as writer:
            writer.put(tables.INDEX, oid, tables.pack_location(place))

    return harm


def at_a_needed_place(vault: Vault, oid: bytes) -> None:
    points_at(row(vault, vault.resolve("main").volumes[0].root))(vault, oid)


def at_a_dead_place(vault: Vault, oid: bytes) -> None:
    points_at(row(vault, object_id(random.Random(1).randbytes(BLOCK))))(vault, oid)


HARMS = [
    under_another_id,
    at_a_needed_place,
    at_a_dead_place,
    points_at(tables.location(1 << 30, 0)),
    points_at(tables.location(1, 60_000)),
]


@pytest.mark.parametrize("fate", ["dropped", "moved", "left"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_needed_block_outlives_its_row(
    vault: Vault,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Vault, bytes], None],
    fate: str,
) -> None:
    """Its frame is one that would be dropped, for nothing else in it is needed, moved, or left."""
    before = content(vault)
    ids = [object_id(before[at : at + BLOCK]) for at in range(0, len(before), BLOCK)]
    frame = row(vault, ids[COUNT // 2 + 1]) >> tables.SLOT_BITS
    there = [oid for oid in ids if row(vault, oid) >> tables.SLOT_BITS == frame]
    assert len(there) > 1
    for oid in there if fate == "dropped" else there[:1]:
        harm(vault, oid)
    with monkeypatch.context() as patch:
        if fate == "left":
            patch.setattr(gc, "LEAVE", 2.0)
        assert gc.collect(vault).complete
    assert content(vault) == before
    rebuild.rebuild(vault)
    assert check.verify(vault).problems == []
    assert gc.collect(vault).complete
    assert content(vault) == before


def test_a_killed_collection_tells_the_next_what_the_index_lacks(vault: Vault) -> None:
    before = content(vault)
    under_another_id(vault, object_id(before[BLOCK : 2 * BLOCK]))
    gc.Collection(vault).mark()  # and then it was killed
    assert gc.collect(vault).complete
    assert content(vault) == before


def test_what_is_lost_is_found_where_it_was_swept_and_nothing_is_swept_twice(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was dead, was stored anew, and is lost there."""
    told: list[int] = []
    set_dead = LmdbWriter.set_dead

    def noted(self: LmdbWriter, number: int, slots: int) -> None:
        told.append(number)
        set_dead(self, number, slots)

    monkeypatch.setattr(LmdbWriter, "set_dead", noted)
    monkeypatch.setattr(gc, "LEAVE", 2.0)
    lost = random.Random(1).randbytes(BLOCK)  # what block 0 was at first
    first = row(vault, object_id(lost)) >> tables.SLOT_BITS
    assert gc.collect(vault).complete
    assert len(set(told)) > 1
    with vault.session("main") as session:
        session.device("vda").write(BLOCK, lost)
    with vault.store.write() as writer:
        frame = row(vault, object_id(lost)) >> tables.SLOT_BITS
        writer.unindex([object_id(lost)])
        writer.drop_frames([frame])
    told.clear()
    assert gc.collect(vault).complete
    assert content(vault)[BLOCK : 2 * BLOCK] == lost
    assert told == [first]


def test_where_the_index_lacks_very_much_it_gets_back_all_that_it_lacks(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For it is not known then which of that is needed."""
    monkeypatch.setattr("blockvault.ops.marks.UNFOUND_AT_MOST", 3)
    before = content(vault)
    for block in range(0, COUNT, 50):
        under_another_id(vault, object_id(before[block * BLOCK :][:BLOCK]))
    assert gc.plan(vault).dead_objects
    assert gc.collect(vault).complete
    assert content(vault) == before
    rebuild.rebuild(vault)
    assert gc.collect(vault).complete
    assert content(vault) == before
    assert check.verify(vault).problems == []


@pytest.fixture
def other(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The root of another branch, with content of its own; it is walked when main is marked."""
    monkeypatch.setattr("blockvault.ops.mark.LOOKED_UP_AT_ONCE", 1)
    vault.create_branch("other")
    with vault.session("other") as session:
        session.device("vda").write(0, noise("other", 100 * BLOCK))
        session.snapshot("other")
    forget.execute(vault, prune.plan(vault, Policy(last=1, events=0)))
    return vault.resolve("other").volumes[0].root


def test_a_node_whose_row_points_at_a_marked_one_is_not_taken_for_it(
    vault: Vault, other: bytes
) -> None:
    before = vault.device("other", "vda").read(0, COUNT * BLOCK)
    at_a_needed_place(vault, other)
    vault.objects.close()
    with pytest.raises(Damaged):
        gc.collect(vault)
    rebuild.rebuild(vault)
    assert gc.collect(vault).complete
    vault.objects.close()
    assert vault.device("other", "vda").read(0, COUNT * BLOCK) == before
    assert check.verify(vault).problems == []


def test_a_node_is_walked_though_a_block_seems_to_lie_there(vault: Vault, other: bytes) -> None:
    before, theirs = content(vault), vault.device("other", "vda").read(0, COUNT * BLOCK)
    points_at(row(vault, other))(vault, object_id(before[-BLOCK:]))
    vault.objects.close()
    assert gc.collect(vault).complete
    assert content(vault) == before
    assert vault.device("other", "vda").read(0, COUNT * BLOCK) == theirs
    assert check.verify(vault).problems == []


def test_a_hundred_snapshots_give_back_what_only_they_held(tmp_path: Path) -> None:
    """Within 5 % of what is dead, and of what a vault saves that never held anything else."""
    rng = random.Random(7)
    with Vault.create(tmp_path / "v") as vault:
        with vault.session("main") as session:
            device = session.create_volume("vda", COUNT * BLOCK)
            for number in range(COUNT):
                device.write(number * BLOCK, rng.randbytes(BLOCK))
            for version in range(100):
                for number in rng.sample(range(COUNT), 60):
                    device.write(number * BLOCK, rng.randbytes(BLOCK))
                session.snapshot(str(version))
        before = taken(vault)
        plan = prune.plan(vault, Policy(last=5, events=0))
        assert len(plan.forgotten) == 95
        foretold, _ = gc.freed_by(vault, plan)
        forget.execute(vault, plan)
        unreachable = gc.plan(vault).dead
        done = gc.collect(vault)
        assert gc.plan(vault).dead <= 0.05 * unreachable
        assert foretold == unreachable
        assert abs(done.bytes_freed - unreachable) <= 0.05 * unreachable
        assert abs(before - taken(vault) - unreachable) <= 0.05 * unreachable
        assert check.verify(vault).problems == []
        left = taken(vault)
        states = [tmp_path / f"{number}.raw" for number in range(5)]
        for number, name in enumerate(states):
            export.export(vault, f"main~{4 - number}", "vda", name)
    with Vault.create(tmp_path / "w") as other:
        for name in states:
            ingest.import_images(other, [ingest.Image(name, "vda")])
        assert before - left >= 0.95 * (before - taken(other))


def taken(vault: Vault) -> int:
    return (vault.path / shared.DATA).stat().st_blocks * 512
