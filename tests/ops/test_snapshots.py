"""Snapshots, the log, and the list of events."""

from __future__ import annotations

import json
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from blockvault import Vault
from blockvault.cli import events_cmd, main, output
from blockvault.errors import Conflict, NotFound
from blockvault.head import HeadDevice
from blockvault.model import events
from blockvault.ops import ingest, snapshots
from blockvault.ops.snapshots import NewBranch, record
from tests.oracle import BLOCK


def test_a_snapshot_says_what_it_is(vault: Vault) -> None:
    with vault.session() as session:
        session.create_volume("v", 10).write(0, b"x")
        first = session.snapshot("first", author="somebody")
    second = vault.snapshot("second")
    assert (first.message, first.author, first.parents) == ("first", "somebody", ())
    assert (second.author, second.parents) == (vault.author, (first.id,))
    assert second.volumes == first.volumes
    assert second.time_us >= first.time_us
    assert vault.get_snapshot(first.id) == first
    assert [made.id for made in vault.log()] == [second.id, first.id]
    with pytest.raises(NotFound):
        vault.get_snapshot(bytes(32))


def test_snapshots_of_the_same_state_differ(vault: Vault) -> None:
    assert vault.snapshot("same").id != vault.snapshot("same").id


def test_the_log_of_several_states_loads_each_snapshot_once(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [vault.snapshot(str(number)).id for number in range(20)]
    for number in range(20):
        vault.create_branch(f"b{number}", f"main~{number}")
    loaded, load = [], snapshots.load
    monkeypatch.setattr(snapshots, "load", lambda v, oid: loaded.append(oid) or load(v, oid))
    monkeypatch.chdir(vault.path)
    vault.close()
    assert main.run(["log", "--all", "--oneline"]) == 0
    assert sorted(loaded) == sorted(made)


def test_no_parent_comes_before_its_child(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it where a clock went back before the child, which a tag made, came to be."""
    parent = vault.snapshot("parent")
    with vault.session() as session:
        session.create_volume("v", 10)
    monkeypatch.setattr(events, "now_us", lambda: parent.time_us - 1)
    child = vault.tag("t", "main").snapshot
    states = [vault.resolve(name) for name in ("main", "tags/t")]
    for order in (states, states[::-1]):
        assert [made.id for made in snapshots.log(vault, *order)] == [child, parent.id]


def test_a_branch_that_exists_by_now(vault: Vault) -> None:
    def imported(branch: int, snapshot: bytes) -> events.Event:
        return events.Imported(branch=branch, volumes=(), snapshot=snapshot, source="s")

    with pytest.raises(Conflict):
        record(vault, NewBranch("main"), (), imported)
    made = record(vault, NewBranch("new"), (), imported)
    assert vault.resolve("new").snapshot == made.id


def test_events_in_both_directions_and_in_parts(vault: Vault, tmp_path: Path) -> None:
    with vault.session() as session:
        head = session.create_volume("v", 20 * BLOCK)
        for number in range(12):
            head.write(number, b"x")
            if number % 3 == 0:
                session.flush()
    vault.create_branch("b")
    vault.tag("t", "b")
    vault.snapshot("m", branch="b")
    (tmp_path / "i.raw").write_bytes(b"image")
    ingest.import_images(vault, [ingest.Image(tmp_path / "i.raw", "v")], branch="c")
    every = list(vault.events())
    assert [logged.seq for logged in every] == list(range(1, len(every) + 1))
    assert [logged.time_us for logged in every] == sorted(logged.time_us for logged in every)
    for since in range(0, len(every) + 3, 2):
        for until in (since - 1, since, since + 3, len(every) + 5):
            part = [logged for logged in every if since <= logged.seq <= until]
            assert list(vault.events(since=since, until=until)) == part
            assert list(vault.events(since=since, until=until, reverse=True)) == part[::-1]
    of_branches = {name: list(vault.events(name)) for name in ("main", "b", "c")}
    assert {type(logged.event) for logged in of_branches["b"]} == {
        events.BranchCreated,
        events.Snapshotted,
    }
    rest = [logged for logged in every if not any(logged in held for held in of_branches.values())]
    assert {type(logged.event) for logged in rest} == {events.Init, events.Tagged}


def test_where_a_moment_lies_in_the_log(vault: Vault) -> None:
    """Two writes and a flush are one record; a moment may lie between its first and last event."""
    with vault.session() as session:
        head = session.create_volume("v", 20 * BLOCK)
        for number in range(40):
            head.write(number % 20 * BLOCK, b"x")
            time.sleep(0.001)
            head.write(0, bytes([number]))
            session.flush()
    every = list(vault.events())
    moments = {logged.time_us + off for logged in every for off in (-1, 0, 1)} | {0, 1 << 60}
    for moment in moments:
        first = vault.first_event_since(moment)
        later = [logged.seq for logged in every if logged.time_us >= moment]
        assert first <= min(later, default=len(every) + 1)
        earlier = [logged for logged in every if logged.seq < first]
        assert len(every) - first < len(later) + 10, "not much more than is wanted is read"
        assert all(logged.time_us < moment for logged in earlier)


def test_of_the_records_that_may_reach_a_moment_one_is_read(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one that does tells: those behind it begin later."""
    vault.create_branch("b")
    now = events.now_us()
    clock = Mock(return_value=now)
    monkeypatch.setattr(events, "now_us", clock)
    with vault.session() as one, vault.session("b") as two:
        heads = [session.create_volume("v", BLOCK) for session in (one, two)]
        for second in (1, 9):
            clock.return_value = now + second * 1_000_000
            for head in heads:
                head.write(0, b"x")
        two.flush()
        one.flush()
    ends = Mock(wraps=snapshots._end_of)
    monkeypatch.setattr(snapshots, "_end_of", ends)
    first = vault.first_event_since(now + 5_000_000)
    assert ends.call_count == 1
    assert all(each.time_us < now + 5_000_000 for each in vault.events(until=first - 1))


def test_records_of_two_branches_overlap_in_time(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A session stores what guests wrote since it last did: the log has no order by time."""
    vault.create_branch("b")
    start = vault.resolve("main").seq + 1
    now = events.now_us()

    def write(head: HeadDevice, *seconds: int) -> None:
        for second in seconds:
            monkeypatch.setattr(events, "now_us", Mock(return_value=now + second * 1_000_000))
            head.write(0, b"x")

    with vault.session() as one, vault.session("b") as two:
        a, b = one.create_volume("v", BLOCK), two.create_volume("v", BLOCK)
        write(a, 100, 131, 159)
        write(b, 120, 130, 169)
        for session in (one, two):
            session.flush()
        write(a, 180)
    every = list(vault.events())
    assert [each.time_us for each in every] != sorted(each.time_us for each in every)
    monkeypatch.chdir(vault.path)
    for second in range(99, 182):
        moment = now + second * 1_000_000
        until = [each.seq for each in every if each.time_us <= moment]
        since = [each.seq for each in every if each.time_us >= moment]
        assert vault.last_event_until(moment) >= max(until)
        assert start < vault.first_event_since(moment) <= min(since, default=len(every) + 1)
    for second in (100, 130, 155, 169):
        moment = now + second * 1_000_000
        text = output.utc_time(moment)
        for limits, wanted in (
            (["--since", text], [each.seq for each in every if each.time_us >= moment]),
            (["--until", text], [each.seq for each in every if each.time_us <= moment]),
        ):
            for count, listed in (([], wanted), (["-n", "3"], wanted[-3:])):
                events_cmd.run.main([*limits, *count, "--json"], standalone_mode=False)
                lines = capsys.readouterr().out.splitlines()
                assert [json.loads(line)["seq"] for line in lines] == listed
