"""UEFI firmware, whose variables are a volume, and QEMU's own network."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from blockvault.errors import ToolFailed
from blockvault.vm import host


@pytest.fixture
def ovmf(need_tool: Any) -> None:
    try:
        host.firmware()
    except ToolFailed:
        need_tool("ovmf")


def variables(lab: Any, rev: str) -> str:
    path = lab.path / "nvram.fd"
    lab.run("export", f"{rev}:nvram", path, "--force")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.usefixtures("ovmf")
def test_a_uefi_machine_with_a_network(lab: Any) -> None:
    lab.create("main", "--firmware", "uefi", "--net", "user", memory="256M")
    lab.run("vm", "start", "main")
    # The firmware takes its time under emulation, and would take keys for its own.
    lab.wait_until(lambda: "guest is up" in lab.run("vm", "log", "main"), 180.0)
    console = lab.console()
    console.wait_for_shell()
    assert "runtime" in console.run("ls /sys/firmware/efi")
    lease = "ip link set eth0 up; udhcpc -i eth0 -n -q -s /bin/true 2>&1"
    assert "lease of 10.0.2.15" in console.run(lease)
    made = lab.snapshot()
    assert [each["name"] for each in made["volumes"]] == ["nvram", "vda"]
    then = variables(lab, made["id"])
    assert then != variables(lab, "main~1"), "the firmware has written its variables"

    console.run("echo x >/run/later; echo x >/disk/later; sync")
    qemu = lab.status()["qemu"]
    lab.run("vm", "rollback", "main", made["id"])
    assert lab.status()["qemu"] == qemu
    assert console.run("ls /run/later /disk/later 2>&1 | grep -c 'No such'") == "2"
    assert "lease of 10.0.2.15" in console.run(lease)
    assert variables(lab, "main") == then

    lab.run("vm", "clone", "main", "twin")
    assert lab.console("twin").counter() > 0
    assert lab.machine("twin")["status"] == "running"
    lab.run("vm", "stop", "main", "--force")
    assert variables(lab, "main") == then, "nobody changed them"
    lab.check_disk("main")
