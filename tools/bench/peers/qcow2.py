"""qemu-img: one compressed file a state, a chain of overlays, and internal snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.bench.commands import Command, command
from tools.bench.peers.base import Archive, Contender, Machine, NotOffered

ZSTD = ("-o", "compression_type=zstd")


class _QemuImg(Contender):
    programs = ("qemu-img", "qemu-io")

    def start(self) -> list[Command]:
        return [command("qemu-img", "--version")]

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.qcow2"


class _Files(_QemuImg, Archive):
    """Each state is a file, from which qemu-img makes a raw image, whatever lies below it."""

    def create(self) -> list[Command]:
        self.folder.mkdir(parents=True)
        return []

    def restore(self, state: str, target: Path) -> list[Command]:
        options = ("-f", "qcow2", "-O", "raw")
        return [command("qemu-img", "convert", *options, self._file(state), target)]

    def _whole(self, image: Path, state: str) -> Command:
        options = ("-f", "raw", "-O", "qcow2", "-c", *ZSTD)
        return command("qemu-img", "convert", *options, image, self._file(state))


class Qcow2Files(_Files):
    """``convert -c`` with zstd clusters: every state whole, in a file of its own."""

    name = "qcow2-files"
    title = "qcow2, one file a state, zstd"
    no_diff = "qemu-img compare stops at the first difference"

    def save(self, image: Path, state: str, machine: str) -> list[Command]:
        return [self._whole(image, state)]

    def verify(self) -> list[Command]:
        raise NotOffered("qemu-img check reads metadata only; data has no checksums")

    def forget(self, gone: Sequence[str], kept: Sequence[str]) -> list[Command]:
        return [command("rm", *map(self._file, gone))]


class Qcow2Chain(_Files, Machine):
    """Overlays on a first state.  As an archive, ``rebase`` keeps what differs from the state
    before (the way that qemu-img's manual gives); it cannot compress overlays."""

    name = "qcow2-chain"
    title = "qcow2, chain of overlays"
    no_diff = ""
    skips_holes = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tips: dict[str, str] = {}

    def save(self, image: Path, state: str, machine: str) -> list[Command]:
        tip, self.tips[machine] = self.tips.get(machine), state
        if tip is None:
            return [self._whole(image, state)]
        onto = ("-b", self._file(tip), "-F", "qcow2")
        return [
            *self._overlay(state, image, "raw"),
            command("qemu-img", "rebase", "-f", "qcow2", *onto, self._file(state)),
        ]

    def forget(self, gone: Sequence[str], kept: Sequence[str]) -> list[Command]:
        raise NotOffered("the states below must be merged into those above, file by file")

    def diff(self, old: str, new: str) -> list[Command]:
        """As ``compare``; with N states between, what is not as deep as N + 1 is newer than
        ``old``."""
        return [self._map(new)]

    def create_disk(self, size: int, image: Path) -> list[Command]:
        self.folder.mkdir(parents=True)
        options = ("-f", "raw", "-O", "qcow2", image, self._file("disk"))
        self.tips["disk"] = "disk"
        return [command("qemu-img", "convert", *options)]

    def change(self, offset: int, seed: int, count: int = 1, stride: int = 4096) -> list[Command]:
        return write_blocks(self._file(self.tips["disk"]), offset, seed, count, stride)

    def snapshot(self, name: str) -> list[Command]:
        """The present top becomes the snapshot; a new overlay takes the writes."""
        old, self.tips["disk"] = self.tips["disk"], f"after-{name}"
        self.tips[name] = old
        return self._overlay(f"after-{name}", self._file(old), "qcow2")

    def branch(self, name: str, snapshot: str) -> list[Command]:
        return self._overlay(name, self._file(self.tips[snapshot]), "qcow2")

    def rollback(self, snapshot: str) -> list[Command]:
        fresh = f"back-{self.tips['disk']}"
        self.tips["disk"] = fresh
        return self._overlay(fresh, self._file(self.tips[snapshot]), "qcow2")

    def compare(self, old: str, new: str) -> list[Command]:
        """``map`` of the newer overlay: the ranges of depth 0 are those that it changed."""
        return [self._map(self.tips[new])]

    def read_old(self, snapshot: str) -> list[Command]:
        file = self._file(self.tips[snapshot])
        return [command("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 4096", file)]

    def _map(self, name: str) -> Command:
        return command("qemu-img", "map", "--output=json", self._file(name))

    def _overlay(self, name: str, backing: Path, kind: str) -> list[Command]:
        options = ("-q", "-f", "qcow2", "-b", backing, "-F", kind)
        return [command("qemu-img", "create", *options, self._file(name))]


class Qcow2Internal(_QemuImg, Machine):
    """Snapshots inside one file."""

    name = "qcow2-internal"
    title = "qcow2, internal snapshots"

    def create_disk(self, size: int, image: Path) -> list[Command]:
        self.folder.mkdir(parents=True)
        options = ("-f", "raw", "-O", "qcow2")
        return [command("qemu-img", "convert", *options, image, self._file("disk"))]

    def change(self, offset: int, seed: int, count: int = 1, stride: int = 4096) -> list[Command]:
        return write_blocks(self._file("disk"), offset, seed, count, stride)

    def snapshot(self, name: str) -> list[Command]:
        return [command("qemu-img", "snapshot", "-c", name, self._file("disk"))]

    def rollback(self, snapshot: str) -> list[Command]:
        return [command("qemu-img", "snapshot", "-a", snapshot, self._file("disk"))]

    def compare(self, old: str, new: str) -> list[Command]:
        raise NotOffered("internal snapshots cannot be compared without exporting both")

    def read_old(self, snapshot: str) -> list[Command]:
        raise NotOffered("internal snapshots are read by exporting them whole")


def write_blocks(
    file: Path, offset: int, seed: int, count: int, stride: int, *, kind: str = "qcow2"
) -> list[Command]:
    """Scattered 4 KiB writes with qemu-io, a thousand in each process."""
    commands = []
    for first in range(0, count, 1000):
        words: list[str] = []
        for number in range(first, min(first + 1000, count)):
            pattern = (seed * 131 + number) % 251 + 1
            words += ["-c", f"write -q -P {pattern} {offset + number * stride} 4096"]
        commands.append(command("qemu-io", "-f", kind, *words, file))
    return commands
