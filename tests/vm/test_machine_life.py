"""A real guest through its life: started, recorded, wrecked, brought back, cloned."""

from __future__ import annotations

import shlex
import uuid
from typing import Any

import pytest

from blockvault.cli.vm import qmp_cmd


def test_a_wrecked_machine_is_brought_back_and_cloned(lab: Any) -> None:
    lab.create()
    console = lab.start()
    assert lab.status()["status"] == "running"
    console.run("echo kept >/disk/file; sync")
    counted = console.counter()
    made = lab.snapshot(message="good")
    names = [each["name"] for each in made["attachments"]]
    assert names == ["device-state", "initrd", "kernel", "machine.json", "memory", "state.json"]
    kvm = lab.run("vm", "qmp", "main", "query-kvm", "--json")["return"]["enabled"]
    assert made["pause"] < (2.0 if kvm else 10.0)

    console.run("rm /disk/file; echo bad >/disk/wreck; sync; rm /bin/cat")
    later = lab.snapshot(message="wrecked")
    different = {row["volume"]: row for row in lab.run("diff", made["id"], later["id"], "--json")}
    assert {"vda", "memory", "device-state"} <= different.keys()
    assert 0 < different["memory"]["changed"] < made["used"]
    assert different["memory"]["attachment"]
    assert "machine.json" not in different
    qemu = lab.status()["qemu"]
    lab.run("vm", "rollback", "main", made["id"])
    assert lab.status()["qemu"] == qemu, "it goes back inside of the QEMU that runs"
    console = lab.console()
    at = console.counter()
    assert counted <= at < counted + 200
    assert console.run("ls /disk").split() == ["file", "lost+found"]
    assert console.run("cat /disk/file") == "kept"
    lab.wait_until(lambda: console.counter() > at)

    # The clone goes on from a running machine, and the two no longer meet.
    guid = lab.run("vm", "qmp", "main", "query-vm-generation-id", "--json")["return"]["guid"]
    told = lab.run("vm", "clone", "main", "twin", "--json")
    assert told["snapshot"]
    twin = lab.console("twin")
    assert twin.counter() >= at
    twin.run("echo twin >/disk/who; sync")
    console.run("echo main >/disk/who; sync")
    assert twin.run("cat /disk/who") == "twin"
    assert console.run("cat /disk/who") == "main"
    other = lab.run("vm", "qmp", "twin", "query-vm-generation-id", "--json")["return"]["guid"]
    assert other != guid
    for branch in ("main", "twin"):
        lab.run("vm", "stop", branch, "--force")
        assert lab.status(branch)["status"] == "stopped"
        lab.check_disk(branch)
    lab.check_disk(later["id"])
    lab.run("verify")


def test_memory_is_the_snapshots_but_for_the_generation_id(lab: Any) -> None:
    lab.create()
    console = lab.start()
    lab.run("vm", "pause", "main")
    made = lab.snapshot()
    (memory,) = lab.runtime.glob("*/memory")
    before = memory.read_bytes()
    lab.run("vm", "resume", "main")
    console.run("dd if=/dev/urandom of=/run/noise bs=1M count=8; rm -r /modules")
    assert memory.read_bytes() != before
    guid = uuid.UUID(
        lab.run("vm", "qmp", "main", "query-vm-generation-id", "--json")["return"]["guid"]
    )
    place = before.index(guid.bytes_le)
    lab.run("vm", "rollback", "main", made["id"])
    after = memory.read_bytes()
    assert lab.status()["status"] == "paused"
    assert after[place : place + 16] != guid.bytes_le, "the guest has been here before"
    assert after[:place] + guid.bytes_le + after[place + 16 :] == before


def test_another_machine_takes_another_qemu(lab: Any) -> None:
    """A snapshot of a machine with other hardware, or without memory, cannot be gone back to
    inside of the QEMU that runs."""
    lab.create()
    console = lab.start()
    console.run("echo kept >/disk/file; sync")
    full = lab.snapshot()
    lab.run("vm", "stop", "main", "--force")
    lab.create(memory="160M")
    lab.start()
    qemu = lab.status()["qemu"]
    assert "resumed" in lab.run("vm", "rollback", "main", full["id"])
    assert lab.status()["qemu"] != qemu
    assert lab.machine()["memory"] == 128 << 20
    assert lab.console().run("cat /disk/file") == "kept"
    assert "booted" in lab.run("vm", "rollback", "main", "main~1")
    lab.console().wait_for_shell()


def test_a_full_snapshot_survives_the_machine(lab: Any) -> None:
    """Stopped, the head is no full snapshot any more and boots; its snapshot goes on elsewhere."""
    lab.create()
    console = lab.start()
    console.run("echo 1 >/disk/n; sync; echo in-memory >/run/note")
    made = lab.snapshot()
    console.run("echo 2 >/disk/n; sync")
    lab.run("vm", "stop", "main", "--force")
    assert "booted" in lab.run("vm", "start", "main")
    console = lab.console()
    console.wait_for_shell()
    assert console.run("cat /disk/n; test -e /run/note || echo gone") == "2\ngone"
    lab.run("vm", "stop", "main", "--force")

    assert "resumed" in lab.run("vm", "start", made["id"], "--as", "old")
    console = lab.console("old")
    assert console.run("cat /disk/n /run/note") == "1\nin-memory"
    lab.run("vm", "stop", "old", "--force")
    # A rollback of a machine that does not run: the next start goes on from there.
    lab.run("vm", "rollback", "main", made["id"])
    assert "resumed" in lab.run("vm", "start", "main")
    assert lab.console().run("cat /disk/n /run/note") == "1\nin-memory"


def test_pause_resume_disks_alone_and_qmp(lab: Any) -> None:
    lab.create()
    console = lab.start()
    lab.run("vm", "pause", "main")
    assert lab.status()["status"] == "paused"
    paused = lab.snapshot(message="paused")
    assert lab.status()["status"] == "paused"
    lab.run("vm", "resume", "main")
    lab.wait_until(lambda: lab.status()["status"] == "running")
    before = console.counter()
    lab.wait_until(lambda: console.counter() > before)

    plain = lab.snapshot("main", "disks", "--disk-only")
    assert plain["pause"] is None
    assert [each["name"] for each in plain["attachments"]] == ["initrd", "kernel", "machine.json"]
    console.run("echo dirty >/disk/unsynced")
    lab.snapshot("main", "quiet", "--quiesce")
    lab.check_disk("main~0")
    assert "dirty" in lab.run("vm", "log", "main", "-n", "5")
    # blockvault's own snapshot asks the machine too, and the configuration is not forgotten.
    lab.run("snapshot", "-b", "main", "-m", "from outside")
    assert lab.run("vm", "qmp", "main", "query-status", "--json")["return"]["status"] == "running"
    assert lab.run("vm", "qmp", "main", "no-such", "--json", code=9)["error"]["kind"]

    lab.run("vm", "rollback", "main", paused["id"])
    assert lab.status()["status"] == "paused"
    lab.run("vm", "resume", "main")
    assert lab.console().counter() >= before - 200


def test_the_examples_of_qmp_are_commands_that_qemu_takes(lab: Any) -> None:
    lab.create("main", "--net", "user")
    lab.run("vm", "start", "main")
    for line in qmp_cmd.run.examples:
        program, *words = shlex.split(line.replace(" web ", " main "))
        assert program == "blockvault"
        lab.run(*words)


def test_a_paused_machine_is_recorded_again_and_again(lab: Any) -> None:
    """QEMU saves the devices of a guest that stands only once."""

    def devices(made: dict[str, Any]) -> str:
        (found,) = [each for each in made["attachments"] if each["name"] == "device-state"]
        return str(found["root"])

    lab.create()
    console = lab.start()
    console.run("echo first >/run/note")
    lab.run("vm", "pause", "main")
    first, again = lab.snapshot(), lab.snapshot()
    assert devices(again) == devices(first)
    lab.run("vm", "clone", "main", "twin", "--paused")
    assert lab.status()["status"] == "paused"

    lab.run("vm", "resume", "main")
    console.run("echo second >/run/note")
    lab.run("vm", "pause", "main")
    second = lab.snapshot()
    assert devices(second) != devices(first)
    lab.run("vm", "rollback", "main", first["id"])
    here = lab.snapshot()
    assert devices(here) == devices(first)

    lab.run("vm", "rollback", "main", second["id"])
    lab.run("vm", "rollback", "main", here["id"])
    lab.run("vm", "resume", "main")
    assert lab.console().run("cat /run/note") == "first"


def test_lines_of_a_configuration_that_differ(lab: Any) -> None:
    lab.create()
    lab.create(memory="256M")
    (row,) = [lab.run("diff", "main~1", "main~0", "--json")]
    assert row["volume"] == "machine.json"
    assert row["lines"] == [f'- "memory": {128 << 20},', f'+ "memory": {256 << 20},']
    assert "machine.json: + " in lab.run("diff", "main~1", "main~0")


def test_the_guest_ends_by_itself(lab: Any) -> None:
    lab.create()
    console = lab.start()
    console.run("echo x >/disk/x; sync")
    console._socket.sendall(b"poweroff -f\n")
    lab.wait_until(lambda: lab.status()["status"] == "stopped")
    assert "powered off" in lab.status()["note"]
    error = lab.run("vm", "snapshot", "main", "--json", code=3)
    assert error["error"]["kind"] == "machine-stopped"
    lab.check_disk("main")


def test_a_moment_of_the_past_boots_and_is_thrown_away(lab: Any) -> None:
    lab.create()
    console = lab.start()
    console.run("echo then >/disk/time; sync")
    moment = lab.run("branch", "--json")["seq"]
    console.run("echo now >/disk/time; sync")
    told = lab.run("vm", "start", f"main@{{#{moment}}}", "--throw-away", "--json")
    other = lab.console(told["branch"])
    other.wait_for_shell()
    assert other.run("cat /disk/time") == "then"
    assert console.run("cat /disk/time") == "now"
    lab.run("vm", "stop", told["branch"], "--force")
    lab.wait_until(lambda: isinstance(lab.run("branch", "--json"), dict))
    assert lab.run("branch", "--json")["name"] == "main"


@pytest.mark.parametrize(
    ("words", "kind", "code"),
    [
        (("vm", "start", "main"), "no-machine", 3),
        (("vm", "stop", "main"), "machine-stopped", 3),
        (("vm", "create", "m", "--memory", "100"), "bad-request", 2),
        (("vm", "create", "m", "--disk", "vda=nowhere.img"), "no-image", 3),
        (("vm", "create", "m", "--disk", "vda=main:no"), "no-volume", 3),
        (("vm", "start", "main@{#1}"), "no-revision", 3),
        (("vm", "log", "main"), "no-log", 3),
    ],
)
def test_bad_requests(lab: Any, words: tuple[str, ...], kind: str, code: int) -> None:
    assert lab.run(*words, "--json" if words[1] != "log" else "-n1", code=code)
