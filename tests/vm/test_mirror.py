"""Disks that are copied out of somebody else's QEMU: nothing of it is left there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blockvault.errors import ToolFailed
from blockvault.vm import qmp
from blockvault.vm.foreign import Disk
from blockvault.vm.mirror import Mirrored
from tests.vm.pretended import Pretended, Served, refused

DISKS = [Disk(name, f"node-{name}", 1 << 20) for name in ("a", "b", "c")]


class Jobs:
    """QEMU's jobs and nodes, which it refuses to hear of in the wrong state."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.nodes: list[str] = []
        self.polls = 0
        self.failing = ""
        """A copying that fails, as soon as anybody looks."""

    def __call__(self, command: str, arguments: Mapping[str, Any]) -> Any:
        if command == "blockdev-add":
            if arguments["node-name"] in self.nodes:
                raise refused(command, "Duplicate nodes")
            self.nodes.append(arguments["node-name"])
        elif command == "blockdev-mirror":
            self.states[arguments["job-id"]] = "running"
        elif command == "query-jobs":
            return self.look()
        elif command == "query-named-block-nodes":
            return [{"node-name": name} for name in self.nodes]
        elif command == "block-job-cancel":
            if self.states.get(arguments["device"]) not in ("running", "ready"):
                raise refused(command, "it cannot accept command verb 'cancel'")
            self.states[arguments["device"]] = "concluded"
        elif command == "job-dismiss":
            if self.states.pop(arguments["id"], "") != "concluded":
                raise refused(command, "there is no such job")
        elif command == "blockdev-del":
            if arguments["node-name"] in self.states:
                raise refused(command, "the node is in use")
            self.nodes.remove(arguments["node-name"])
        return {}

    def look(self) -> list[dict[str, str]]:
        self.polls += bool(self.states)
        for name, state in self.states.items():
            if state == "running" and self.polls > 2:
                self.states[name] = "ready"
        if self.failing in self.states:
            self.states[self.failing] = "concluded"
            self.errors[self.failing] = "no room"
        return [
            {"id": name, "status": state}
            | ({"error": self.errors[name]} if name in self.errors else {})
            for name, state in self.states.items()
        ]


def mirrored(jobs: Jobs) -> Mirrored:
    session: Any = SimpleNamespace(branch=SimpleNamespace(name="web"), close=lambda: None)
    return Mirrored(Pretended(jobs), session, DISKS, lambda *_: Served(), Path("nbd"))


@pytest.mark.parametrize("failing", ["blockvault-0", "blockvault-1", "blockvault-2"])
def test_one_disk_that_fails_leaves_nothing_of_the_others(failing: str) -> None:
    jobs = Jobs()
    disks = mirrored(jobs)
    jobs.failing = failing
    with pytest.raises(ToolFailed, match="no room"):
        disks.begin()
    disks.close()
    assert (jobs.states, jobs.nodes) == ({}, [])


def test_what_qemu_did_after_its_time_is_undone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs()
    disks = mirrored(jobs)
    monitor = disks._monitor
    assert isinstance(monitor, Pretended)

    def late(command: str, arguments: Mapping[str, Any]) -> Any:
        jobs(command, arguments)
        if command == "blockdev-mirror":
            raise ToolFailed("QEMU's monitor did not answer in 30 s", kind="qemu-stalled")
        return {}

    monkeypatch.setattr(monitor, "_answer", late)
    with pytest.raises(ToolFailed):
        disks.begin()
    monkeypatch.setattr(monitor, "_answer", jobs)
    disks.close()
    assert (jobs.states, jobs.nodes) == ({}, [])


@pytest.mark.parametrize("state", ["running", "ready", "concluded"])
def test_what_a_killed_command_left_is_taken_out_first(state: str) -> None:
    jobs = Jobs()
    jobs.nodes = ["blockvault-0", "blockvault-1", "blockvault-7", "theirs"]
    jobs.states = {"blockvault-0": state, "blockvault-7": state, "backup": "running"}
    disks = mirrored(jobs)
    disks.begin()
    assert "blockvault-7" not in jobs.nodes
    disks.settle()
    disks.close()
    assert (list(jobs.states), jobs.nodes) == (["backup"], ["theirs"])


def test_a_long_copying_is_not_asked_for_a_thousand_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(qmp.time, "sleep", slept.append)
    disks = mirrored(Jobs())
    disks.begin()
    assert len(slept) == 2
    assert min(slept) >= 0.05
    disks.settle()
    disks.close()
