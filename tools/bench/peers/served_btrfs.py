"""A file on btrfs behind an NBD server: whose file system keeps the states of a disk."""

from __future__ import annotations

import itertools
from pathlib import Path

from tools.bench.commands import Command
from tools.bench.peers.btrfs import Btrfs
from tools.bench.peers.nbd import NbdServer, qemu_nbd


class QemuNbdBtrfs(NbdServer):
    """A raw file on btrfs with compress=zstd:3, just after a snapshot of its subvolume."""

    name = "btrfs-nbd"
    title = "qemu-nbd, raw file on btrfs (compress=zstd:3), just after a snapshot"
    state = "after a snapshot"
    programs = ("qemu-nbd", *Btrfs.programs)
    needs_root = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._machine = Btrfs(folder)
        self._numbers = itertools.count()

    @classmethod
    def missing(cls) -> str | None:
        return super().missing() or Btrfs.missing()

    def prepare(self, image: Path, snapshots: int, branches: int) -> list[Command]:
        return self._machine.create_disk(image.stat().st_size, image)

    def refresh(self) -> list[Command]:
        return self._machine.snapshot(f"s{next(self._numbers)}")

    def serve(self, listening: Path) -> list[Command]:
        return qemu_nbd(listening, self._machine.disk, "-f", "raw")

    def close(self) -> None:
        self._machine.close()
