"""A file on btrfs behind an NBD server: whose file system keeps the states of a disk."""

from __future__ import annotations

import itertools
from pathlib import Path

from tools.bench.commands import Command, command
from tools.bench.peers.btrfs import Btrfs
from tools.bench.peers.nbd import MADE, NbdServer, qemu_nbd


class QemuNbdBtrfs(NbdServer):
    """A raw file on btrfs with compress=zstd:3, just after a snapshot of its subvolume."""

    name = "btrfs-nbd"
    title = "qemu-nbd, raw file on btrfs (compress=zstd:3), just after a snapshot"
    state = "after a snapshot"
    programs = ("qemu-nbd", *Btrfs.programs)
    needs_root = True
    serves_old = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._machine = Btrfs(folder)
        self._numbers = itertools.count()

    @classmethod
    def missing(cls) -> str | None:
        return super().missing() or Btrfs.missing()

    def prepare(self, image: Path, snapshots: int, branches: int) -> list[Command]:
        made = self._machine.create_disk(image.stat().st_size, image)
        return [*made, *self._machine.snapshot(MADE)]

    def refresh(self) -> list[Command]:
        return self.keep(f"s{next(self._numbers)}")

    def keep(self, name: str) -> list[Command]:
        return self._machine.snapshot(name)

    def serve(self, listening: Path) -> list[Command]:
        return qemu_nbd(listening, self._machine.disk, "-f", "raw")

    def serve_made(self, listening: Path) -> list[Command]:
        return qemu_nbd(listening, self._machine.kept(MADE), "-f", "raw", "--read-only")

    def take_out(self, target: Path) -> list[Command]:
        return [command("cp", "--sparse=always", self._machine.disk, target)]

    def close(self) -> None:
        self._machine.close()
