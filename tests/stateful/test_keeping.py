"""A vault that forgets and collects, against dictionaries that say what it must still know.

Every step is small, so that hypothesis can put them between each other: a collection is advanced
phase by phase and transaction by transaction, may be killed at any point, and runs beside open
sessions, devices that read old states, and operations that looked something up long before they
commit.  Blocks have few different contents, so that what is written is often what just became
garbage.  After every step all states that must be reachable are read.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from blockvault import folding
from blockvault.errors import Damaged, NotFound
from blockvault.model import events
from blockvault.model.retention import Policy
from blockvault.model.snapshot import Volume
from blockvault.ops import check, forget, gc, policy, prune, rebuild, refs, snapshots
from blockvault.ops.marks import Counted, Marks
from blockvault.ops.positions import Position
from blockvault.ops.reading import StateDevice
from blockvault.session import Session
from blockvault.vault import Vault

BLOCK = 4096
BLOCKS = 40
CONTENTS = 30

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Nothing here is about durability: a file system in memory makes the same steps faster."""

Content = tuple[int, ...]
EMPTY: Content = (0,) * BLOCKS


def block(what: int) -> bytes:
    return bytes(BLOCK) if not what else random.Random(what).randbytes(BLOCK)


def image(content: Content) -> bytes:
    return b"".join(map(block, content))


class Line:
    """A branch as it must be: its content after each durable event, and where it is cut."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.states: dict[int, Content] = {}
        self.cut = 0
        self.deleted = False


class Keeping(RuleBasedStateMachine):
    """What a user and a collector do, in any order."""

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="keeping-", dir=MEMORY))
        self.vault = Vault.create(self.folder)
        self.lines: dict[str, Line] = {}
        self.snapshots: dict[bytes, Content] = {}
        self.named: dict[str, bytes] = {}
        self.held: set[bytes] = set()
        self.sessions: dict[str, Session] = {}
        self.pinned: list[tuple[StateDevice, Content]] = []
        self.slow: list[tuple[ExitStack, str, object]] = []
        self.collection: gc.Collection | None = None
        self.phase = ""
        self.steps: Iterator[int] = iter(())
        self.count = 0
        self.lines["main"] = Line(self.vault.branch("main").id)
        self.session("main").create_volume("vda", BLOCKS * BLOCK)
        self.lines["main"].states[self.seq("main")] = EMPTY
        self.now = {"main": EMPTY}

    def teardown(self) -> None:
        if not hasattr(self, "vault"):
            return
        try:
            for stack, _, _ in self.slow:
                stack.close()
            self.finish()
        finally:
            for session in self.sessions.values():
                session.close()
            self.pinned.clear()
            self.vault.close()
            shutil.rmtree(self.folder)

    def finish(self) -> None:
        """At the end a collection must leave exactly what is reachable."""
        self.slow.clear()
        self.pinned.clear()
        for name in sorted(self.sessions.keys() & set(self.live())):
            self.flush_of(name)
        assert gc.collect(self.vault, wait=5).complete
        left = gc.plan(self.vault)
        with self.vault.read() as reader:
            assert left.objects - left.dead_objects == len(list(reader.scan("index")))
        self.everything_is_sound()

    def everything_is_sound(self) -> None:
        assert check.verify(self.vault).problems == []
        rebuilt = rebuild.rebuild(self.vault, dry_run=True)
        assert (rebuilt.changed_rows, rebuilt.index_entries) == (0, 0)

    # -- helpers -----------------------------------------------------------------------------------

    def session(self, name: str) -> Session:
        if name not in self.sessions:
            self.sessions[name] = self.vault.session(name)
        return self.sessions[name]

    def seq(self, name: str) -> int:
        return self.vault.branch(name).seq

    def live(self) -> list[str]:
        return sorted(name for name, line in self.lines.items() if not line.deleted)

    def pick(self) -> str:
        return self.rng.choice(self.live())

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def flush_of(self, name: str) -> None:
        self.session(name).flush()
        line = self.lines[name]
        line.states[self.seq(name)] = self.now[name]

    def revisions(self) -> list[tuple[str, Content]]:
        """Every state that must be readable, by a name for it."""
        found = [(oid.hex(), content) for oid, content in self.snapshots.items()]
        for name, line in self.lines.items():
            if not line.deleted:
                for seq, content in line.states.items():
                    if seq >= line.cut:
                        found.append((f"{name}@{{#{seq}}}", content))
        return found

    def read(self, revision: str) -> bytes:
        return self.vault.device(revision, "vda", exact=True).read(0, BLOCKS * BLOCK)

    # -- a machine at work -------------------------------------------------------------------------

    @rule(at=st.integers(0, BLOCKS - 1), count=st.integers(1, 30), what=st.integers(0, CONTENTS))
    def write(self, at: int, count: int, what: int) -> None:
        name = self.pick()
        values = [(what + n) % (CONTENTS + 1) for n in range(min(count, BLOCKS - at))]
        self.session(name).device("vda").write(at * BLOCK, b"".join(map(block, values)))
        content = list(self.now[name])
        content[at : at + len(values)] = values
        self.now[name] = tuple(content)

    @rule(at=st.integers(0, BLOCKS - 1), count=st.integers(1, BLOCKS), trim=st.booleans())
    def clear(self, at: int, count: int, trim: bool) -> None:
        name = self.pick()
        count = min(count, BLOCKS - at)
        device = self.session(name).device("vda")
        (device.trim if trim else device.zero)(at * BLOCK, count * BLOCK)
        content = list(self.now[name])
        content[at : at + count] = [0] * count
        self.now[name] = tuple(content)

    @rule()
    def flush(self) -> None:
        self.flush_of(self.pick())

    @rule()
    def snapshot(self) -> None:
        name = self.pick()
        made = self.session(name).snapshot(self.fresh("snapshot "))
        self.snapshots[made.id] = self.now[name]
        self.lines[name].states[self.seq(name)] = self.now[name]

    @rule()
    def reopen(self) -> None:
        for name in list(self.sessions):
            self.flush_of(name)
            self.sessions.pop(name).close()
        for stack, _, _ in self.slow:
            stack.close()
        self.slow.clear()
        self.pinned.clear()
        self.collection = None
        self.vault.close()
        self.vault = Vault.open(self.folder)

    # -- history -----------------------------------------------------------------------------------

    def begun(self, name: str, content: Content) -> None:
        line = self.lines[name] = Line(self.vault.branch(name).id)
        line.states[line.number] = content
        self.now[name] = content

    @precondition(lambda self: len(self.live()) < 4)
    @rule()
    def branch(self) -> None:
        revision, content = self.rng.choice(self.revisions())
        name = self.fresh("b")
        with self.vault.guard():
            position = self.vault.resolve(revision, exact=True)
            refs.create(self.vault, name, position)
        self.begun(name, content)

    @rule()
    def rollback(self) -> None:
        name = self.pick()
        revision, content = self.rng.choice(self.revisions())
        if name in self.sessions:
            self.flush_of(name)
            self.sessions.pop(name).close()
        with self.vault.guard():
            refs.rollback(self.vault, name, self.vault.resolve(revision, exact=True))
        self.lines[name].states[self.seq(name)] = content
        self.now[name] = content

    @precondition(lambda self: len(self.live()) > 1)
    @rule()
    def delete(self) -> None:
        name = self.rng.choice([name for name in self.live() if name != "main"])
        if name in self.sessions:
            self.flush_of(name)
            self.sessions.pop(name).close()
        self.vault.delete_branch(name)
        self.lines[name].deleted = True

    @rule()
    def restore(self) -> None:
        deleted = sorted(name for name, line in self.lines.items() if line.deleted)
        if not deleted:
            return
        name = self.rng.choice(deleted)
        self.vault.restore_branch(name)
        self.lines[name].deleted = False

    @rule(held=st.booleans())
    def name(self, held: bool) -> None:
        revision, content = self.rng.choice(self.revisions())
        with self.vault.guard():
            position = self.vault.resolve(revision, exact=True)
            if held and position.snapshot:
                oid = policy.hold(self.vault, position.snapshot.hex(), "kept").snapshot
                self.held.add(oid)
            else:
                label = self.fresh("t")
                oid = refs.tag(self.vault, label, position).snapshot
                self.named[label] = oid
        self.snapshots[oid] = content

    @rule()
    def unname(self) -> None:
        if self.named:
            label = self.rng.choice(sorted(self.named))
            self.vault.delete_tag(label)
            del self.named[label]
        elif self.held:
            oid = self.rng.choice(sorted(self.held))
            policy.unhold(self.vault, oid.hex())
            self.held.remove(oid)

    # -- those who take their time -----------------------------------------------------------------

    @rule()
    def open_old_state(self) -> None:
        revision, content = self.rng.choice(self.revisions())
        self.pinned.append((self.vault.device(revision, "vda", exact=True), content))

    @rule()
    def forget_old_state(self) -> None:
        if self.pinned:
            self.pinned.pop(0)

    @precondition(lambda self: len(self.slow) < 2)
    @rule()
    def begin_branch(self) -> None:
        stack = ExitStack()
        stack.enter_context(self.vault.guard())
        revision, content = self.rng.choice(self.revisions())
        position = self.vault.resolve(revision, exact=True)
        self.slow.append((stack, "branch", (position, content)))

    @precondition(lambda self: len(self.slow) < 2)
    @rule(first=st.integers(0, CONTENTS))
    def begin_import(self, first: int) -> None:
        """Look everything up and store some of it; the event comes later."""
        stack = ExitStack()
        stack.enter_context(self.vault.guard())
        content = tuple((first + n // 3) % (CONTENTS + 1) for n in range(BLOCKS))
        objects = self.vault.new_objects()
        volume = self.built(content, objects)
        with self.vault.transaction() as transaction:
            transaction.add_frames(objects.finish())
        self.slow.append((stack, "import", (volume, content)))

    def built(self, content: Content, objects: object) -> Volume:
        from blockvault.ids import ZERO_ID, object_id
        from blockvault.model.builder import Builder

        builder = Builder(objects, BLOCKS)  # type: ignore[arg-type]
        ids = [ZERO_ID if not what else object_id(block(what)) for what in content]
        ids += [ZERO_ID] * (-len(ids) % 32)
        objects.add_blocks(  # type: ignore[attr-defined]
            [oid for oid in ids if oid != ZERO_ID], [block(what) for what in content if what]
        )
        for at in range(0, len(ids), 32):
            builder.add(b"".join(ids[at : at + 32]))
        return Volume("vda", BLOCKS * BLOCK, builder.finish())

    @precondition(lambda self: self.slow)
    @rule()
    def end_slow(self) -> None:
        stack, kind, what = self.slow.pop(0)
        name = self.fresh("b")
        with stack:
            if kind == "branch":
                position, content = what  # type: ignore[misc]
                assert isinstance(position, Position)
                if self.pruned(position):
                    with pytest.raises(NotFound, match="pruned meanwhile"):
                        refs.create(self.vault, name, position)
                    return
                refs.create(self.vault, name, position)
                self.begun(name, content)
                if position.snapshot:
                    self.snapshots[position.snapshot] = content
                return
            volume, content = what  # type: ignore[misc]
            made = snapshots.record(
                self.vault,
                snapshots.NewBranch(name),
                [volume],
                lambda branch, snapshot: events.Imported(
                    branch=branch, volumes=(volume,), snapshot=snapshot, source="slow"
                ),
            )
        self.begun(name, content)
        self.lines[name].states = {self.seq(name): content}
        self.snapshots[made.id] = content

    # -- forgetting --------------------------------------------------------------------------------

    @rule(
        last=st.integers(0, 3),
        window=st.sampled_from([0, 0, 30_000, 1 << 50]),
        tags=st.sampled_from([None, ("t*",), ("t1*",)]),
        only=st.booleans(),
    )
    def prune(self, last: int, window: int, tags: tuple[str, ...] | None, only: bool) -> None:
        chosen = Policy(last=last, events=window, tags=tags)
        plan = prune.plan(self.vault, chosen, self.pick() if only else None)
        tips = {self.vault.branch(name).tip for name in self.live()}
        assert not plan.forgotten & (tips | self.held)
        if tags is None:
            assert not plan.forgotten & set(self.named.values())
        done = forget.execute(self.vault, plan)
        assert set(done.snapshots) == plan.forgotten
        for oid in done.snapshots:
            self.snapshots.pop(oid, None)
            self.refused(oid.hex())
        for label in done.tags:
            del self.named[label]
        for cut in plan.cuts:
            line = self.lines[cut.name]
            line.cut = cut.seq
            for seq in line.states:
                if seq < cut.seq and line.states[seq] != EMPTY and not self.kept_at(cut.name, seq):
                    self.refused(f"{cut.name}@{{#{seq}}}")
        for name in self.live():
            for move in self.vault.reflog(name):
                assert self.vault.resolve(f"{name}@{{#{move.seq}}}").seq == move.seq
        for _, name in plan.dropped:
            del self.lines[name]
            with pytest.raises(NotFound):
                self.vault.restore_branch(name)
        self.everything_is_sound()

    def pruned(self, position: Position) -> bool:
        """Whether writes that lead from a waypoint to a position are forgotten."""
        cuts = {line.number: line.cut for line in self.lines.values()}
        cut = cuts.get(position.branch, position.seq + 1)
        return position.waypoint_seq < position.seq < cut

    def kept_at(self, name: str, seq: int) -> bool:
        return any(move.seq == seq for move in self.vault.reflog(name))

    def refused(self, revision: str) -> None:
        with pytest.raises(NotFound):
            self.vault.resolve(revision, exact=True)

    # -- collecting --------------------------------------------------------------------------------

    @rule()
    def collect_on(self) -> None:
        """One phase, or one transaction of the last phase."""
        if self.collection is None:
            self.collection, self.phase = gc.Collection(self.vault), "mark"
        collection = self.collection
        if self.phase == "mark":
            collection.mark()
            self.phase = "condemn"
        elif self.phase == "condemn":
            collection.condemn()
            self.phase = "drain"
        elif self.phase == "drain":
            early = any(kind for _, kind, _ in self.slow)
            drained = collection.drain(0)
            assert drained or early, "nobody who began earlier is left"
            self.phase = "settle" if drained else "drain"
        elif self.phase == "settle":
            collection.settle()
            self.steps = collection.sweep()
            self.phase = "sweep"
        elif next(self.steps, None) is None:
            collection.forget_records()
            self.collection = None

    @rule()
    def collector_is_killed(self) -> None:
        self.collection = None

    @precondition(lambda self: not self.slow)
    @rule()
    def collect(self) -> None:
        self.collection = None
        assert gc.collect(self.vault, wait=5).complete
        self.everything_is_sound()

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def all_that_must_be_readable_is(self) -> None:
        if not hasattr(self, "vault"):
            return
        for revision, content in self.revisions():
            assert self.read(revision) == image(content), revision
        for device, content in self.pinned:
            assert device.read(0, device.size) == image(content)
        for name, session in self.sessions.items():
            device = session.device("vda")
            assert device.read(0, device.size) == image(self.now[name]), name


def run_machine(examples: int, monkeypatch: pytest.MonkeyPatch, **others: Any) -> None:
    monkeypatch.setattr(folding, "CHECKPOINT_BLOCKS", 30)
    monkeypatch.setattr(folding, "LEFT_OVER_BLOCKS", 15)
    monkeypatch.setattr("blockvault.ops.sweep._DROPS_A_STEP", 1)
    monkeypatch.setattr("blockvault.ops.sweep._MOVES_A_STEP", 3 * BLOCK)
    monkeypatch.setattr("blockvault.ops.sweep._LOOKS_A_STEP", 1)
    run_state_machine_as_test(
        Keeping,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **others,
        ),
    )


def test_keeping(nightly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run_machine(1000 if nightly else 12, monkeypatch)


def test_a_sweep_that_takes_a_living_object_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Marks.frames

    def one_too_many(marks: Marks) -> Iterator[Counted]:
        """The first object of the newest frame counts as dead."""
        every = list(honest(marks))
        return iter([*every[:-1], *(each._replace(marked=each.marked & ~1) for each in every[-1:])])

    monkeypatch.setattr(Marks, "frames", one_too_many)
    with pytest.raises((AssertionError, Damaged)):
        run_machine(12, monkeypatch, phases=[Phase.generate], database=None, print_blob=False,
                    report_multiple_bugs=False)  # fmt: skip
