"""Processes that die and hosts that lack something: nothing flushed is lost, all of it is said."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def state(pid: int) -> bytes:
    """The letter that the system has for it; Z for one that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0]
    except OSError:
        return b"Z"


def gone(pid: int) -> bool:
    return state(pid) == b"Z"


def test_qemu_killed_is_noticed_and_loses_nothing_flushed(lab: Any) -> None:
    lab.create()
    console = lab.start()
    console.run("echo flushed >/disk/f; sync")
    kill(lab.status()["qemu"])
    lab.wait_until(lambda: lab.status()["status"] == "stopped")
    assert "SIGKILL" in lab.status()["note"]
    lab.check_disk("main")
    assert "booted" in lab.run("vm", "start", "main")
    console = lab.console()
    console.wait_for_shell()
    assert console.run("cat /disk/f") == "flushed"


def test_a_dead_supervisor_is_taken_over_and_the_guest_runs_on(lab: Any) -> None:
    lab.create()
    console = lab.start()
    console.run("echo before >/disk/f; sync")
    console.run("sleep 7; sync")  # the file system's own late writes
    counted = console.counter()
    pid = lab.status()["pid"]
    kill(pid)
    lab.wait_until(lambda: gone(pid))
    assert lab.status()["status"] == "orphaned"
    assert lab.run("vm", "stop", "main", code=3)
    for words in (("vm", "rollback"), ("rollback",)):
        error = lab.run(*words, "main", "main~0", "--json", code=5)
        assert error["error"]["kind"] == "branch-busy"
    assert console.counter() >= counted  # it computes on, and only its disk waits
    told = lab.run("vm", "start", "main")
    assert "taken over" in told
    assert "nothing was lost" in told
    console = lab.console()
    assert console.counter() > counted
    assert console.run("echo after >>/disk/f; sync; cat /disk/f") == "before\nafter"
    lab.snapshot()
    row = lab.status()
    kill(row["pid"])
    lab.wait_until(lambda: gone(row["pid"]))
    told = lab.run("vm", "stop", "main", "--force", "--json")
    assert "had no supervisor" in told["ended"]
    assert gone(row["qemu"])
    assert lab.status()["status"] == "stopped"
    lab.check_disk("main~0")


def test_a_supervisor_that_dies_with_writes_resets_the_guest(lab: Any) -> None:
    """Writes that only the dead process had are gone: the guest must not believe in them."""
    lab.create()
    console = lab.start()
    console.run("echo kept >/disk/kept; sync; echo alive >/run/alive")
    pid = lab.status()["pid"]
    unflushed = next(lab.runtime.glob("*-*/unflushed"))
    line = "while :; do dd if=/dev/urandom of=/disk/load bs=64k count=64; done >/dev/null 2>&1 &"
    console.run(f"({line})")

    def stopped_with_writes() -> bool:
        os.kill(pid, signal.SIGSTOP)
        lab.wait_until(lambda: state(pid) == b"T")
        if unflushed.read_bytes()[0]:
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    lab.wait_until(stopped_with_writes)
    kill(pid)
    lab.wait_until(lambda: gone(pid))
    told = lab.run("vm", "start", "main")
    assert "taken over" in told
    assert "reset as by a power cut" in told
    console = lab.console()
    console.wait_for_shell()
    assert console.run("cat /run/alive 2>/dev/null || echo gone") == "gone"
    assert console.run("cat /disk/kept") == "kept"
    console.run("echo again >/disk/again; sync")
    lab.run("vm", "stop", "main", "--force")
    lab.check_disk("main")


def killed_in_a_snapshot(
    lab: Any, row: dict[str, Any], victim: str, delay: float
) -> tuple[int, str]:
    """Kill a process so long after a snapshot was begun, or earlier if that was too late.

    How many there were before it, and what the command said.
    """
    for attempt in range(10):
        count, told = len(lab.run("log", "main", "--oneline").splitlines()), list[str]()
        asking = threading.Thread(
            target=lambda told=told: told.append(lab.run("vm", "snapshot", "main", code=None))
        )
        asking.start()
        while asking.is_alive() and not takes_memory(row["pid"]):
            time.sleep(0.001)
        time.sleep(delay / 2**attempt)
        struck = takes_memory(row["pid"])
        if struck:
            kill(row[victim])
        asking.join()
        if struck:
            return count, told[0]
    raise AssertionError("every snapshot was over before anybody could be struck")


def takes_memory(pid: int) -> bool:
    """Whether a supervisor reads its guest's memory: it does so as long as a snapshot takes."""
    opened = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(f"{opened}/{fd}").endswith("/memory") for fd in os.listdir(opened))
    except OSError:  # one was closed at this moment, and others are looked at the next time
        return False


@pytest.mark.parametrize(
    ("victim", "delay"),
    [
        ("qemu", 0.1),
        ("pid", 0.1),
        *(pytest.param(v, d / 20, marks=pytest.mark.nightly) for v in ("qemu", "pid")
          for d in range(20)),
    ],
)  # fmt: skip
def test_a_death_in_the_middle_of_a_snapshot_leaves_none_of_it(
    lab: Any, victim: str, delay: float
) -> None:
    lab.create()
    console = lab.start()
    console.run("echo safe >/disk/f; sync")
    row = lab.status()
    count, told = killed_in_a_snapshot(lab, row, victim, delay)
    lab.wait_until(lambda: gone(row[victim]))
    lab.wait_until(lambda: lab.status()["status"] != "running")
    made = lab.run("log", "main", "--oneline").splitlines()
    assert len(made) - count in ((1,) if "stood" in told else (0, 1))
    lab.run("verify")
    lab.run("vm", "start", "main")
    console = lab.console()
    console.wait_for_shell()
    assert console.run("cat /disk/f") == "safe"
    if len(made) > count:  # it was recorded before the death: then it is whole
        told = lab.run("vm", "start", made[0].split()[0], "--as", "again")
        assert "resumed" in told
        assert lab.console("again").run("cat /disk/f") == "safe"


@pytest.mark.parametrize(
    "delay", [0.1, *(pytest.param(d / 40, marks=pytest.mark.nightly) for d in range(20))]
)
def test_a_supervisor_that_dies_while_it_goes_back(lab: Any, delay: float) -> None:
    """The guest must not go on with the memory of one moment and the disks of another."""
    lab.create()
    console = lab.start()
    console.run("echo then >/disk/f; sync; echo then >/run/f")
    made = lab.snapshot()
    console.run("echo now >/disk/f; sync; echo now >/run/f")
    row = lab.status()
    asking = threading.Thread(
        target=lambda: lab.run("vm", "rollback", "main", made["id"], code=None)
    )
    asking.start()
    rewinding = next(lab.runtime.glob("*-*/")) / "unsound"
    lab.wait_until(lambda: rewinding.exists() or not asking.is_alive())
    time.sleep(delay)
    kill(row["pid"])
    asking.join()
    lab.wait_until(lambda: gone(row["pid"]))
    told = lab.run("vm", "start", "main")
    console = lab.console()
    console.wait_for_shell()
    disk, memory = console.run("cat /disk/f; cat /run/f || echo none").split()
    assert memory in (("none",) if "booted" in told else (disk,)), told
    lab.run("vm", "stop", "main", "--force")
    lab.check_disk("main")
    lab.run("verify")


@pytest.mark.nightly
def test_a_monitor_that_stalls_is_no_half_snapshot(lab: Any) -> None:
    """QEMU stopped by a signal answers nothing: the snapshot fails, and the guest goes on later."""
    lab.create()
    console = lab.start()
    before = console.counter()
    qemu = lab.status()["qemu"]
    os.kill(qemu, signal.SIGSTOP)
    try:
        error = lab.run("vm", "snapshot", "main", "--json", code=9)
    finally:
        os.kill(qemu, signal.SIGCONT)
    assert error["error"]["kind"] == "qemu-stalled"
    assert len(lab.run("log", "main", "--oneline").splitlines()) == 1
    lab.wait_until(lambda: lab.status()["status"] == "running")
    lab.wait_until(lambda: console.counter() > before)
    lab.snapshot()


def test_starting_twice(lab: Any) -> None:
    lab.create()
    lab.start()
    error = lab.run("vm", "start", "main", "--json", code=5)
    assert error["error"]["kind"] == "machine-running"
    assert lab.status()["status"] == "running"
    error = lab.run("rollback", "main", "main~0", "--json", code=5)
    assert error["error"]["kind"] == "branch-busy"


def test_no_qemu(lab: Any, tmp_path: Any) -> None:
    lab.create()
    error = lab.run("vm", "start", "main", "--json", code=9, PATH=str(tmp_path))
    assert error["error"]["kind"] == "tool-missing"
    assert "qemu-system-x86" in error["error"]["message"]


def test_memory_that_does_not_fit_is_told_before_anything_starts(lab: Any) -> None:
    lab.create(memory="4000G")
    error = lab.run("vm", "start", "main", "--json", code=7)
    assert error["error"]["kind"] == "no-space"
    assert lab.status()["status"] == "stopped"


def test_a_runtime_directory_on_a_disk_is_refused(lab: Any, tmp_path: Any) -> None:
    lab.create()
    where = tmp_path / "run"
    error = lab.run("vm", "start", "main", "--json", code=2, BLOCKVAULT_RUNTIME=str(where))
    assert "tmpfs" in error["error"]["message"]


def test_a_state_of_another_qemu_needs_force(lab: Any) -> None:
    from blockvault import Vault
    from blockvault.ops import attachments
    from blockvault.vm.machine import HOST, Made

    lab.create()
    lab.run("vm", "start", "main")
    lab.snapshot()
    lab.run("vm", "stop", "main", "--force")
    with Vault.open(lab.path) as vault:
        tip = vault.get_snapshot(vault.branch("main").tip)
        made = Made.decode(attachments.content(vault, tip.attachments, HOST))
        other = Made(qemu="99.0.1", accelerator=made.accelerator, paused=False).encode()
        vault.create_branch("foreign", tip.id.hex())
        with vault.session("foreign") as session:
            kept = [each for each in tip.attachments if each.name != HOST]
            with vault.guard():
                fake = attachments.keep(vault, {HOST: other})
                session.snapshot("foreign", attachments=[*kept, *fake])
    error = lab.run("vm", "start", "foreign", "--json", code=4)
    assert error["error"]["kind"] == "other-qemu"
    assert "resumed" in lab.run("vm", "start", "foreign", "--force")
