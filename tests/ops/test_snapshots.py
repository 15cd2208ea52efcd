"""Snapshots, the log, and the list of events."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from blockvault import Vault
from blockvault.cli import main
from blockvault.errors import Conflict, NotFound
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
        assert first <= min(later, default=len(every))
        earlier = [logged for logged in every if logged.seq < first]
        assert len(every) - first < len(later) + 10, "not much more than is wanted is read"
        assert all(logged.time_us < moment for logged in earlier)
