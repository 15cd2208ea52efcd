"""QEMU's own ways to keep a running machine, which the machine rows stand beside."""

from __future__ import annotations

import functools
import json
import subprocess

from tools.bench.commands import Command, command, environment
from tools.bench.peers.base import Contender


class QemuSavevm(Contender):
    """``savevm`` and ``loadvm``: memory and devices into the disk's qcow2 file."""

    name = "qemu-savevm"
    title = "QEMU, savevm into qcow2"
    programs = ("qemu-system-x86_64", "qemu-img")

    def start(self) -> list[Command]:
        return [command("qemu-system-x86_64", "--version")]


class QemuMigrate(QemuSavevm):
    """``migrate`` of the stopped machine to a file; the disk is not part of it."""

    name = "qemu-migrate"
    title = "QEMU, stop and migrate to a file, without the disk"


class QemuBackground(QemuSavevm):
    """``migrate`` with ``background-snapshot``: the machine goes on when its devices are recorded,
    and its memory is written as it was then; the disk is not part of it.
    """

    name = "qemu-background"
    title = "QEMU, background snapshot to a file, without the disk"

    @classmethod
    def missing(cls) -> str | None:
        return super().missing() or _refused()


BACKGROUND = {"capability": "background-snapshot", "state": True}


@functools.cache
def _refused() -> str | None:
    """What QEMU says to the capability, which the kernel must offer too, if it does not take it."""
    orders = (
        {"execute": "qmp_capabilities"},
        {"execute": "migrate-set-capabilities", "arguments": {"capabilities": [BACKGROUND]}},
        {"execute": "quit"},
    )
    done = subprocess.run(
        ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"],
        input="\n".join(map(json.dumps, orders)) + "\n",
        capture_output=True,
        text=True,
        check=False,
        env=environment({}),
        timeout=60,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    refusals = [each["error"]["desc"] for each in said if "error" in each]
    if not said:
        refusals = [done.stderr.strip() or "QEMU does not start"]
    return f"no background-snapshot: {refusals[0]}" if refusals else None
