"""btrfs on a loop device, mounted with compress=zstd:3; states are read-only snapshots."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.bench.commands import Command, command
from tools.bench.peers.base import Archive, Machine
from tools.bench.peers.qcow2 import write_blocks

ROOT = Path(__file__).parents[3]
CAPACITY = 24 << 30  # of the sparse loop file


class Btrfs(Archive, Machine):
    """The disk is a file ``disk.img`` in a subvolume; only its changed blocks are rewritten."""

    name = "btrfs"
    title = "btrfs, compress=zstd:3, snapshots"
    no_diff = ""
    programs = ("btrfs", "mkfs.btrfs", "mount", "qemu-io")
    needs_root = True

    @classmethod
    def missing(cls) -> str | None:
        reason = super().missing()
        if reason is None and "btrfs" not in Path("/proc/filesystems").read_text():
            return "the running kernel has no btrfs"
        return reason

    def start(self) -> list[Command]:
        return [command("btrfs", "--version")]

    def create(self) -> list[Command]:
        self.folder.mkdir(parents=True)
        disk = self.folder / "loop.img"
        disk.touch()
        os.truncate(disk, CAPACITY)
        self._root.mkdir()
        return [
            command("mkfs.btrfs", "-q", disk),
            command("mount", "-o", "loop,compress=zstd:3,noatime", disk, self._root),
        ]

    def close(self) -> None:
        """Who still uses it keeps the mount to itself: its place is free in any case."""
        root = str(self._root)
        if os.path.ismount(root) and subprocess.run(["umount", root], check=False).returncode:
            subprocess.run(["umount", "-l", root], check=True)

    def size(self) -> int:
        os.sync()
        status = os.statvfs(self._root)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def save(self, image: Path, state: str, machine: str) -> list[Command]:
        live = self._root / machine
        if live.exists():
            words = (sys.executable, "-m", "tools.bench.patch", image, live / "disk.img")
            bring = [command(*words, cwd=ROOT)]
        else:
            bring = [
                command("btrfs", "-q", "subvolume", "create", live),
                command("cp", "--sparse=always", image, live / "disk.img"),
            ]
        return [*bring, self._snapshot(live, state, read_only=True)]

    def restore(self, state: str, target: Path) -> list[Command]:
        return [command("cp", "--sparse=always", self._root / state / "disk.img", target)]

    def verify(self) -> list[Command]:
        return [command("btrfs", "-q", "scrub", "start", "-B", self._root)]

    def forget(self, gone: Sequence[str], kept: Sequence[str]) -> list[Command]:
        """The commit wakes the cleaner; else ``sync`` waits for the next one, half a minute."""
        words = ("-q", "subvolume", "delete", "--commit-after")
        return [
            command("btrfs", *words, *(self._root / name for name in gone)),
            command("btrfs", "-q", "subvolume", "sync", self._root),
        ]

    def diff(self, old: str, new: str) -> list[Command]:
        return self.compare(old, new)

    def create_disk(self, size: int, image: Path) -> list[Command]:
        return [
            *self.create(),
            command("btrfs", "-q", "subvolume", "create", self.disk.parent),
            command("cp", "--sparse=always", image, self.disk),
        ]

    def change(self, offset: int, seed: int, count: int = 1, stride: int = 4096) -> list[Command]:
        return write_blocks(self.disk, offset, seed, count, stride, kind="raw")

    def snapshot(self, name: str) -> list[Command]:
        return [self._snapshot(self.disk.parent, name, read_only=True)]

    def branch(self, name: str, snapshot: str) -> list[Command]:
        return [self._snapshot(self._root / snapshot, name)]

    def rollback(self, snapshot: str) -> list[Command]:
        live = self.disk.parent
        return [
            command("btrfs", "-q", "subvolume", "delete", live),
            self._snapshot(self._root / snapshot, live.name),
        ]

    def compare(self, old: str, new: str) -> list[Command]:
        """``send --no-data``: the stream lists the changed ranges without their bytes."""
        stream = self.folder / "changes"
        words = ("-q", "send", "--no-data", "-p", self._root / old, self._root / new)
        return [command("btrfs", *words, stdout=stream)]

    def read_old(self, snapshot: str) -> list[Command]:
        return [command("dd", f"if={self.kept(snapshot)}", "of=/dev/null", "bs=4096", "count=1")]

    @property
    def disk(self) -> Path:
        """The file that is the live disk of ``create_disk``."""
        return self._root / "live" / "disk.img"

    def kept(self, snapshot: str) -> Path:
        """The file that was the disk when a snapshot was taken."""
        return self._root / snapshot / "disk.img"

    @property
    def _root(self) -> Path:
        return self.folder / "mounted"

    def _snapshot(self, source: Path, name: str, *, read_only: bool = False) -> Command:
        options = ("-r",) if read_only else ()
        target = self._root / name
        return command("btrfs", "-q", "subvolume", "snapshot", *options, source, target)
