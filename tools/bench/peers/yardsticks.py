"""NBD servers that keep no history: what the protocol and a raw file cost by themselves."""

from __future__ import annotations

from pathlib import Path

from tools.bench.commands import Command, command
from tools.bench.peers.nbd import SUSTAINED, EmptyDisk, NbdServer, qemu_nbd

PROTOCOL = "client and protocol alone: nbdkit answering from memory"
"""What the rate of ``NbdkitMemory`` is a limit of."""


class _RawFile(NbdServer):
    """A raw file, which ``take_out`` need not make one."""

    keeps_history = False

    def prepare(self, image: Path, snapshots: int, branches: int) -> list[Command]:
        self.folder.mkdir(parents=True)
        return [command("cp", "--sparse=always", image, self._disk)]

    @property
    def _disk(self) -> Path:
        return self.folder / "disk.img"


class QemuNbdRaw(_RawFile):
    """The same server as that of the qcow2 files."""

    name = "qemu-raw"
    title = "qemu-nbd, raw file"
    programs = ("qemu-nbd",)

    def serve(self, listening: Path) -> list[Command]:
        return qemu_nbd(listening, self._disk, "-f", "raw")


class NbdkitMemory(EmptyDisk):
    """nbdkit's memory plugin: the protocol and the client, without any store.

    It gets the memory of its disk as that is written to, which is not the protocol's work.
    """

    keeps_history = False
    fill = ("--rw=write", "--bs=1m", "--iodepth=4")
    name = "nbdkit-memory"
    title = "nbdkit, memory (no store)"
    programs = ("nbdkit",)

    @classmethod
    def does(cls, job: str) -> bool:
        return job != SUSTAINED

    def serve(self, listening: Path) -> list[Command]:
        return [command("nbdkit", "-f", "-U", listening, "memory", f"size={self.bytes}")]


class NbdkitFile(_RawFile):
    """nbdkit's file plugin."""

    name = "nbdkit-file"
    title = "nbdkit, raw file"
    programs = ("nbdkit",)

    def serve(self, listening: Path) -> list[Command]:
        return [command("nbdkit", "-f", "-U", listening, "file", self._disk)]
