"""The fold against a machine that keeps the whole history and looks everything up the long way."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.encoding import unpack
from blockvault.errors import Damaged
from blockvault.ids import ZERO_ID, object_id
from blockvault.model import events, projections, state, tree
from blockvault.model.events import Event
from blockvault.model.fields import BASE_TABLES
from blockvault.model.overlay import Overlay, replay
from blockvault.model.projected import (
    BranchRow,
    DeletedRow,
    HoldRow,
    RecordedRow,
    TagRow,
    TrailRow,
    WaypointRow,
)
from blockvault.model.projections import numbers
from blockvault.model.rows import Row, pack_rows, to_row, unpack_rows
from blockvault.model.snapshot import Volume
from blockvault.model.update import update

BS = 4096
BLOCKS = 50
T0 = 1_795_428_005_000_000


class DictTables:
    """The projection tables as sorted dicts."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[bytes, bytes]] = {name: {} for name in projections.TABLES}
        self.reads = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        self.reads += 1
        return self.rows[table].get(key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.rows[table][key] = value

    def delete(self, table: str, key: bytes) -> bool:
        return self.rows[table].pop(key, None) is not None

    def scan(
        self, table: str, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        keys = sorted(self.rows[table])
        keys = keys[bisect_left(keys, start) : None if stop is None else bisect_left(keys, stop)]
        for key in reversed(keys) if reverse else keys:
            self.reads += 1
            yield key, self.rows[table][key]


class Line:
    """A branch, the long way: what it was after each of its content events."""

    def __init__(self, name: str) -> None:
        self.name, self.deleted = name, False
        self.states: dict[int, dict[int, bytes]] = {}
        self.tips: dict[int, bytes | None] = {}
        self.barriers: list[int] = []
        self.waypoints: list[int] = []

    def upto(self, seq: int) -> int:
        return max(at for at in self.states if at <= seq)


class Machine:
    """Makes random but sound histories, event by event, and remembers all of it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.log: list[tuple[int, Event]] = []
        self.lines: dict[int, Line] = {}
        self.tags: dict[str, TagRow] = {}
        self.recorded: dict[bytes, RecordedRow] = {}
        self.head: int | None = None
        self.nodes = tree.Scratch()
        self.now = T0
        self.add(events.Init(vault_id=bytes(16), block_size=BS, compression="none"))
        self.create(None)

    @property
    def seq(self) -> int:
        return len(self.log)

    def add(self, event: Event) -> int:
        self.now += self.rng.choice([0, 0, 1, 1000, 10_000_000])
        self.log.append((self.now, event))
        return self.seq

    def live(self) -> list[int]:
        return [branch for branch, line in self.lines.items() if not line.deleted]

    def name(self) -> str:
        return f"b{self.seq + 1}"

    def volumes(self, content: dict[int, bytes]) -> tuple[Volume, ...]:
        root = update(self.nodes, self.nodes, ZERO_ID, 2, content)
        return (Volume("vda", BLOCKS * BS, root),)

    def moved(self, branch: int, content: dict[int, bytes], tip: bytes | None, kind: str) -> None:
        line = self.lines[branch]
        line.states[self.seq], line.tips[self.seq] = content, tip
        if kind != "data":
            line.barriers.append(self.seq)
        if kind == "waypoint":
            line.waypoints.append(self.seq)

    def now_of(self, branch: int) -> tuple[dict[int, bytes], bytes | None]:
        line = self.lines[branch]
        seq = line.upto(self.seq)
        return dict(line.states[seq]), line.tips[seq]

    # one method for each kind of event

    def create(self, source: int | None) -> None:
        name = self.name()
        if source is None:
            content: dict[int, bytes] = {}
            event = events.BranchCreated(
                name=name, source=0, source_seq=0, snapshot=None, volumes=self.volumes(content)
            )
            tip = None
        else:
            seq = self.rng.choice(list(self.lines[source].states))
            content, tip = self.lines[source].states[seq], self.lines[source].tips[seq]
            event = events.BranchCreated(
                name=name,
                source=source,
                source_seq=seq,
                snapshot=None,
                volumes=self.volumes(content),
            )
        self.lines[self.add(event)] = Line(name)
        self.moved(self.seq, content, tip, "waypoint")

    def write(self, branch: int) -> None:
        content, tip = self.now_of(branch)
        first = self.rng.randrange(BLOCKS)
        count = min(self.rng.choice([1, 1, 2, 30]), BLOCKS - first)
        where = {"branch": branch, "volume": "vda", "offset": first * BS, "length": count * BS}
        if self.rng.random() < 0.7:
            ids = [object_id(self.rng.randbytes(1)) for _ in range(count)]
            self.add(events.Wrote(ids=b"".join(ids), **where))  # type: ignore[arg-type]
            content.update(enumerate(ids, first))
        else:
            self.add(self.rng.choice([events.Zeroed, events.Trimmed])(**where))  # type: ignore[arg-type]
            content.update(dict.fromkeys(range(first, first + count), ZERO_ID))
        self.moved(branch, content, tip, "data")

    def barrier(self, branch: int) -> None:
        self.add(events.Barrier(branch=branch))
        self.moved(branch, *self.now_of(branch), "barrier")

    def checkpoint(self, branch: int) -> None:
        content, tip = self.now_of(branch)
        self.add(events.Checkpointed(branch=branch, volumes=self.volumes(content)))
        self.moved(branch, content, tip, "waypoint")

    def resize(self, branch: int) -> None:
        content, tip = self.now_of(branch)
        volumes = self.volumes(content)
        self.add(
            events.VolumeChanged(branch=branch, volumes=volumes, action="resize", volume="vda")
        )
        self.moved(branch, content, tip, "waypoint")

    def snapshot(self, branch: int) -> None:
        content, _ = self.now_of(branch)
        volumes, oid = self.volumes(content), object_id(b"snapshot %d" % self.seq)
        if self.rng.random() < 0.5:
            self.add(events.Snapshotted(branch=branch, volumes=volumes, snapshot=oid))
        else:
            self.add(events.Imported(branch=branch, volumes=volumes, snapshot=oid, source="x.img"))
        self.recorded[oid] = RecordedRow(self.seq, branch)
        self.moved(branch, content, oid, "waypoint")

    def rollback(self, branch: int) -> None:
        target = self.rng.choice(list(self.lines))
        line = self.lines[target]
        seq = self.rng.choice(list(line.states))
        content, tip = line.states[seq], line.tips[seq]
        is_snapshot = seq in [row.seq for row in self.recorded.values()]
        self.add(
            events.RolledBack(
                branch=branch,
                volumes=self.volumes(content),
                snapshot=tip if is_snapshot else None,
                target_branch=target,
                target_seq=seq,
            )
        )
        self.moved(branch, content, tip, "waypoint")

    def rename(self, branch: int) -> None:
        name = self.name()
        self.add(events.BranchRenamed(branch=branch, name=name))
        self.lines[branch].name = name

    def delete(self, branch: int) -> None:
        if len(self.live()) > 1:
            self.add(events.BranchDeleted(branch=branch))
            self.lines[branch].deleted = True

    def restore(self, _: int) -> None:
        gone = [branch for branch, line in self.lines.items() if line.deleted]
        if gone:
            branch, name = self.rng.choice(gone), self.name()
            self.add(events.BranchRestored(branch=branch, name=name))
            self.lines[branch].name, self.lines[branch].deleted = name, False

    def switch(self, branch: int) -> None:
        self.add(events.Switched(branch=branch))
        self.head = branch

    def tag(self, _: int) -> None:
        name = f"t{self.rng.randrange(3)}"
        if name in self.tags and self.rng.random() < 0.5:
            self.add(events.Untagged(name=name))
            del self.tags[name]
        elif self.recorded:
            snapshot = self.rng.choice(list(self.recorded))
            self.tags[name] = TagRow(
                snapshot, self.add(events.Tagged(name=name, snapshot=snapshot))
            )

    def step(self) -> None:
        often = [self.write] * 8 + [self.barrier] * 3
        rare = [self.create, self.checkpoint, self.resize, self.snapshot, self.snapshot]
        names = [self.rollback, self.rename, self.delete, self.restore, self.switch, self.tag]
        self.rng.choice(often + rare + names)(self.rng.choice(self.live()))

    def records(self, rng: random.Random) -> Iterator[tuple[int, int, list[Row]]]:
        """The log cut into records anywhere: (first seq, time, rows)."""
        at = 0
        while at < self.seq:
            stop = min(self.seq, at + rng.choice([1, 1, 2, 5, 40]))
            time_us = self.log[at][0]
            rows = [to_row(event, when - time_us) for when, event in self.log[at:stop]]
            yield at + 1, time_us, rows
            at = stop


def build(seed: int, steps: int) -> tuple[Machine, DictTables, list[tuple[int, int, list[Row]]]]:
    rng = random.Random(seed)
    machine = Machine(rng)
    for _ in range(steps):
        machine.step()
    tables, records = DictTables(), list(machine.records(rng))
    for first, time_us, rows in records:
        state.apply_record(tables, first, time_us, unpack_rows(pack_rows(rows)))
    return machine, tables, records


histories = st.builds(build, st.integers(0, 1 << 40), st.integers(0, 60))


@given(histories)
def test_branches_names_and_tags(built: tuple[Machine, DictTables, Any]) -> None:
    machine, tables, _ = built
    found = dict(projections.branches(tables))
    assert list(found) == sorted(machine.lines)
    for branch, line in machine.lines.items():
        last = max(line.states)
        row = found[branch]
        assert (row.name, row.deleted) == (line.name, line.deleted)
        assert (row.waypoint_seq, row.last_seq) == (line.waypoints[-1], last)
        assert (row.tip, row.barrier_seq) == (line.tips[last], line.barriers[-1])
        assert row == projections.get_branch(tables, branch)
        assert projections.branch_named(tables, line.name) == (None if line.deleted else branch)
    live = {machine.lines[branch].name for branch in machine.live()}
    heads = {key for key in tables.rows["refs"] if key.startswith(b"heads/")}
    assert heads == {b"heads/" + name.encode() for name in live}
    assert projections.head(tables) == machine.head
    assert dict(projections.tags(tables)) == machine.tags
    assert all(projections.tag_named(tables, n) == machine.tags.get(n) for n in ("t0", "t1", "t2"))
    assert dict(projections.snapshots(tables)) == machine.recorded
    for oid, row in machine.recorded.items():
        assert projections.recorded(tables, oid) == row
        assert dict(projections.snapshots(tables, oid.hex()[:5])) == {
            other: r for other, r in machine.recorded.items() if other.hex()[:5] == oid.hex()[:5]
        }


@given(histories)
def test_every_state_is_its_last_waypoint_and_the_rows_since(
    built: tuple[Machine, DictTables, list[tuple[int, int, list[Row]]]],
) -> None:
    machine, tables, records = built
    rows = [row for _, _, some in records for row in some]
    for branch, line in machine.lines.items():
        assert [seq for seq, _ in projections.waypoints(tables, branch)] == line.waypoints[::-1]
        for seq, content in line.states.items():
            at, waypoint = next(projections.waypoints(tables, branch, seq))
            assert waypoint == projections.waypoint(tables, branch, at)
            assert waypoint.tip == line.tips[seq]
            assert waypoint.time_us == machine.log[at - 1][0]
            overlays: dict[str, Overlay] = {}
            replay(overlays, rows[at:seq], branch, BS)
            (volume,) = waypoint.volumes
            overlay = overlays.get("vda", Overlay())
            root = overlay.fold(machine.nodes, machine.nodes, volume.root, 2)
            assert root == machine.volumes(content)[0].root


@given(histories)
def test_the_trail_leads_to_every_record_and_barrier(
    built: tuple[Machine, DictTables, list[tuple[int, int, list[Row]]]],
) -> None:
    machine, tables, records = built
    for branch, line in machine.lines.items():
        expected = []
        for first, time_us, rows in records:
            inside = range(first, first + len(rows))
            mine = [seq for seq in line.states if seq in inside]
            barriers = [seq for seq in line.barriers if seq in inside]
            if mine:
                row = TrailRow(max(mine), max(barriers, default=0), time_us)
                expected.append((first, row))
        assert list(projections.trail(tables, branch, reverse=False)) == expected
        assert list(projections.trail(tables, branch)) == expected[::-1]
        seq = random.Random(branch).randrange(machine.seq + 2)
        assert list(projections.trail(tables, branch, seq)) == [
            item for item in expected[::-1] if item[0] <= seq
        ]
        assert list(projections.trail(tables, branch, start=seq)) == [
            item for item in expected[::-1] if item[0] >= seq
        ]
        times = {time_us for _, time_us, _ in records}
        for when in sorted(times | {t + 1 for t in times} | {T0 - 5, 0, 1 << 60}):
            before = [item for item in expected if item[1].time_us <= when]
            assert projections.trail_at_time(tables, branch, when) == (
                before[-1] if before else None
            )


@given(histories)
def test_rebuilding_gives_equal_bytes(
    built: tuple[Machine, DictTables, list[tuple[int, int, list[Row]]]],
) -> None:
    machine, tables, records = built
    again = DictTables()
    for record in records:
        state.apply_record(again, *record)
    assert again.rows == tables.rows
    other = DictTables()
    for record in machine.records(random.Random(99)):
        state.apply_record(other, *record)
    for table in ("refs", "branches", "waypoints", "snapshots"):
        assert other.rows[table] == tables.rows[table], "how events are grouped does not matter"


VOLUMES = (Volume("vda", 5 * BS, object_id(b"root")),)
SNAP = object_id(b"snapshot")


def fold(*listed: Event) -> DictTables:
    tables = DictTables()
    rows = [to_row(event, at) for at, event in enumerate(listed)]
    state.apply_record(tables, 1, T0, rows)
    return tables


def test_the_bytes_of_the_rows_are_pinned() -> None:
    tables = fold(
        events.Init(vault_id=bytes(16), block_size=BS, compression="none"),
        events.BranchCreated(name="main", source=0, source_seq=0, snapshot=None, volumes=VOLUMES),
        events.Switched(branch=2),
        events.Imported(branch=2, volumes=VOLUMES, snapshot=SNAP, source="a.img"),
        events.Wrote(branch=2, volume="vda", offset=0, length=BS, ids=object_id(b"x")),
        events.Barrier(branch=2),
        events.VolumeChanged(branch=2, volumes=VOLUMES, action="add", volume="vda"),
        events.RolledBack(branch=2, volumes=VOLUMES, snapshot=None, target_branch=2, target_seq=5),
        events.Tagged(name="v1", snapshot=SNAP),
        events.Wrote(branch=2, volume="vda", offset=0, length=BS, ids=object_id(b"y")),
    )
    volumes = tuple(tuple(volume) for volume in VOLUMES)
    two = bytes(7) + b"\x02"
    decoded = {
        table: {key: unpack(value, table) for key, value in rows.items()}
        for table, rows in tables.rows.items()
    }
    assert decoded == {
        "refs": {b"HEAD": (2,), b"heads/main": (2,), b"tags/v1": (SNAP, 9)},
        "branches": {two: ("main", 0, 0, False, 8, 10, SNAP, 8, 8)},
        "waypoints": {
            two + bytes(7) + b"\x02": (2, T0 + 1, None, None, volumes, 0, 0),
            two + bytes(7) + b"\x04": (33, T0 + 3, SNAP, SNAP, volumes, "a.img"),
            two + bytes(7) + b"\x07": (36, T0 + 6, None, SNAP, volumes, "add", "vda"),
            two + bytes(7) + b"\x08": (35, T0 + 7, None, SNAP, volumes, 2, 5),
        },
        "trail": {two + bytes(7) + b"\x01": (10, 8, T0)},
        "snapshots": {SNAP: (4, 2)},
    }
    assert projections.get_branch(tables, 2) == BranchRow("main", 0, 0, False, 8, 10, SNAP, 8, 8)
    assert projections.waypoint(tables, 2, 4) == WaypointRow(
        33, T0 + 3, SNAP, SNAP, VOLUMES, ("a.img",)
    )
    assert projections.waypoint(tables, 2, 5) is None


def test_holds_policies_and_deletions_are_rows_of_refs() -> None:
    listed: list[Event] = [
        events.BranchCreated(name="main", source=0, source_seq=0, snapshot=None, volumes=()),
        events.Held(snapshot=SNAP, text="audit"),
        events.PolicySet(branch=1, rules=(("last", 3),)),
        events.PolicySet(branch=0, rules=(("events", 5), ("tags", ("v*",)))),
        events.BranchDeleted(branch=1),
    ]
    tables = fold(*listed)
    assert dict(projections.holds(tables)) == {SNAP: HoldRow(2, T0 + 1, "audit")}
    assert projections.recorded(tables, SNAP) == RecordedRow(2, 0)
    assert projections.policy_rules(tables, 1) == (("last", 3),)
    assert projections.policy_rules(tables, 0) == (("events", 5), ("tags", ("v*",)))
    assert projections.policy_rules(tables, 2) is None
    assert projections.deleted_at(tables, 1) == DeletedRow(5, T0 + 4)
    tables = fold(
        *listed,
        events.BranchRestored(branch=1, name="main"),
        events.Unheld(snapshot=SNAP),
        events.PolicySet(branch=1, rules=()),
    )
    assert projections.deleted_at(tables, 1) is None
    assert dict(projections.holds(tables)) == {}
    assert projections.policy_rules(tables, 1) is None


@given(histories, st.data())
def test_a_replay_from_a_base_gives_the_same_rows(
    built: tuple[Machine, DictTables, list[tuple[int, int, list[Row]]]], data: st.DataObject
) -> None:
    """Some records and rows are pruned; later records are folded; a replay knows only the rest."""
    _, full, records = built
    at = data.draw(st.integers(0, len(records)))
    live = DictTables()
    for first, time_us, rows in records[:at]:
        state.apply_record(live, first, time_us, rows)
    last = records[at - 1] if at else (1, T0, [])
    seq = last[0] + len(last[2])
    keep = sorted(data.draw(st.sets(st.integers(0, at - 1)))) if at else []
    runs = tuple((records[i][0], records[i][0] + len(records[i][2]), SNAP) for i in keep)
    dropped = {key for key in live.rows["waypoints"] if data.draw(st.booleans())}
    base = tuple(
        (table, key, value)
        for table in BASE_TABLES
        for key, value in sorted(live.rows[table].items())
        if key not in dropped
    )
    row = to_row(events.Pruned(kept=runs, base=base), 0)
    (row,) = unpack_rows(pack_rows([row]))
    state.apply_record(live, seq, T0, [row])
    replayed = DictTables()
    state.apply_record(replayed, seq, T0, [row])
    for i in keep:
        for key, value in state.trail_rows(replayed, *records[i]):
            replayed.put("trail", key, value)
    assert replayed.rows == live.rows
    assert {numbers(key)[1] for key in live.rows["trail"]} <= {records[i][0] for i in keep}
    for table in BASE_TABLES:
        assert live.rows[table] == {key: value for name, key, value in base if name == table}
    assert full.rows["trail"].keys() >= live.rows["trail"].keys()


def test_a_tag_records_a_snapshot_that_no_branch_has() -> None:
    tables = fold(events.Tagged(name="v1", snapshot=SNAP))
    assert projections.recorded(tables, SNAP) == RecordedRow(1, 0)


@pytest.mark.parametrize(
    "event",
    [
        events.Switched(branch=9),
        events.BranchDeleted(branch=9),
        events.BranchRenamed(branch=9, name="x"),
        events.BranchRestored(branch=9, name="x"),
        events.Barrier(branch=9),
        events.Checkpointed(branch=9, volumes=()),
        events.Snapshotted(branch=9, volumes=(), snapshot=SNAP),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_of_a_branch_that_never_was_is_damage(event: Event) -> None:
    with pytest.raises(Damaged) as caught:
        fold(event)
    assert caught.value.reason == "log-inconsistent"


@pytest.mark.parametrize(
    "value", [b"", b"\x93\x01", b"\x05", b"\x90", b"\x91\x01", b"\xdc\x00\x20"]
)
def test_a_row_that_cannot_be_decoded_is_damage(value: bytes) -> None:
    tables = fold(
        events.BranchCreated(name="main", source=0, source_seq=0, snapshot=SNAP, volumes=VOLUMES),
        events.Switched(branch=1),
        events.Tagged(name="v1", snapshot=SNAP),
    )
    for table in projections.TABLES:
        assert tables.rows[table]
        tables.rows[table] = dict.fromkeys(tables.rows[table], value)
    reads: list[Callable[[], object]] = [
        lambda: projections.get_branch(tables, 1),
        lambda: list(projections.branches(tables)),
        lambda: projections.waypoint(tables, 1, 1),
        lambda: list(projections.waypoints(tables, 1)),
        lambda: list(projections.trail(tables, 1)),
        lambda: projections.tag_named(tables, "v1"),
        lambda: list(projections.tags(tables)),
        lambda: projections.recorded(tables, SNAP),
        lambda: list(projections.snapshots(tables)),
    ]
    if value != b"\x91\x01":  # which is a sound ref
        reads += [
            lambda: projections.head(tables),
            lambda: projections.branch_named(tables, "main"),
        ]
    for read in reads:
        with pytest.raises(Damaged):
            read()


@pytest.mark.parametrize("prefix", ["", "a", "ab", "abc", "ABC", "ff", "fff"])
def test_snapshots_by_prefix(prefix: str) -> None:
    ids = sorted(
        bytes.fromhex(start + "0" * (64 - len(start)))
        for start in ("00", "0a", "ab", "abc", "abcd", "abd", "ac", "ff", "fff", "f" * 64)
    )
    tables = fold(*(events.Tagged(name=f"t{n}", snapshot=oid) for n, oid in enumerate(ids)))
    found = [oid for oid, _ in projections.snapshots(tables, prefix)]
    assert found == [oid for oid in ids if oid.hex().startswith(prefix.lower())]


def test_finding_a_time_takes_few_reads_on_a_long_branch() -> None:
    tables = fold(
        events.BranchCreated(name="main", source=0, source_seq=0, snapshot=None, volumes=())
    )
    for seq in range(2, 5000):
        state.apply_record(tables, seq, T0 + seq * 10, [(19, 0, 1)])
    tables.reads = 0
    assert projections.trail_at_time(tables, 1, T0 + 25_005) == (
        2500,
        TrailRow(2500, 2500, T0 + 25_000),
    )
    assert tables.reads < 20
    tables.reads = 0
    newest = (4999, TrailRow(4999, 4999, T0 + 49_990))
    assert projections.trail_at_time(tables, 1, T0 + 49_990) == newest
    assert tables.reads == 1


def test_many_data_events_cost_one_update_of_their_branch() -> None:
    tables = fold(
        events.BranchCreated(name="main", source=0, source_seq=0, snapshot=None, volumes=())
    )
    tables.reads = 0
    rows = [(16, 0, 1, "vda", 0, BS, object_id(b"x"))] * 10_000
    state.apply_record(tables, 2, T0, rows)
    assert tables.reads < 5
    assert projections.get_branch(tables, 1).last_seq == 10_001
