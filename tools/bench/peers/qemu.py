"""QEMU's own ways to keep a running machine, which the machine rows stand beside."""

from __future__ import annotations

from tools.bench.commands import Command, command
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
    title = "QEMU, stop and migrate to a file"
