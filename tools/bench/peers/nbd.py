"""NBD servers, each with a disk in a certain state of its history.

The state is what the rows are about: the same program is several contenders, "qcow2" and "qcow2
after an internal snapshot".  ``refresh`` is called before every job, so that "after a snapshot"
means just after one, not after the first job's writes have paid for it.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from pathlib import Path

from tools.bench.commands import Command, command
from tools.bench.peers import vault
from tools.bench.peers.base import Contender, NotOffered, first_version

SEQUENTIAL = ("seqwrite", "seqwrite-1", "seqwrite-16", "seqwrite-end")
"""The jobs that write the disk from end to end."""
SUSTAINED = "sustained"
"""The job that goes on and on."""
LONG = (SUSTAINED, "warmread-1", "warmread-16", "seqread-warm")
"""The jobs that take longer than all others."""
PLAIN = ("blockvault", "qcow2")
"""Who is asked for those; the yardstick of the protocol is for all but the longest."""
OLD = ("seqread-made", "randread-made")
"""The jobs that read a state of the past."""
MADE = "made"
"""The name of that state, where it has one."""


class NbdServer(Contender):
    """Serves one disk on a unix socket."""

    state: str = ""  # words for the table: what happened to the disk before
    serves_old: bool = False  # whether it can serve the disk as ``prepare`` made it
    fill: tuple[str, ...] = ()  # fio's words for a job that comes before each that is measured

    @classmethod
    def does(cls, job: str) -> bool:
        """Whether this server is asked for a job, which then means the same to all that are."""
        if job in OLD:
            return cls.serves_old
        return job not in LONG or cls.name in PLAIN

    @abstractmethod
    def prepare(self, image: Path, snapshots: int, branches: int) -> list[Command]:
        """A disk with the content of ``image``, brought into the state of this contender."""

    def refresh(self) -> list[Command]:
        """What happens to the disk before each job."""
        return []

    @abstractmethod
    def serve(self, listening: Path) -> list[Command]:
        """The server's one command; it stays in the foreground."""

    def uri(self, listening: Path) -> str:
        """Where a client finds the disk."""
        return f"nbd+unix:///?socket={listening}"

    def serve_made(self, listening: Path) -> list[Command]:
        """The same for the disk as ``prepare`` made it, of those that serve that."""
        return self.serve(listening)

    def uri_made(self, listening: Path) -> str:
        """Where a client finds that one."""
        return self.uri(listening)

    def take_out(self, target: Path) -> list[Command]:
        """The disk as it is now, as a raw image; nobody serves it meanwhile."""
        raise NotOffered("what it serves is a raw image, or nothing that stays")

    def keep(self, name: str) -> list[Command]:
        """Take a snapshot of the disk while it is served and written to."""
        raise NotOffered("qemu-img cannot; a running QEMU can, through its monitor")

    def start(self) -> list[Command]:
        return [command(self.programs[0], "--version")]


class EmptyDisk(NbdServer):
    """A disk without content: ``prepare`` looks only at the size of the image."""

    def prepare(self, image: Path, snapshots: int, branches: int) -> list[Command]:
        self.folder.mkdir(parents=True)
        self.bytes = image.stat().st_size
        return []


class QemuNbd(NbdServer):
    """A plain qcow2 file behind qemu-nbd, writeback as it comes."""

    name = "qcow2"
    title = "qemu-nbd, qcow2"
    programs = ("qemu-nbd", "qemu-img")
    convert: tuple[str, ...] = ()

    def prepare(self, image: Path, snapshots: int, branches: int) -> list[Command]:
        self.folder.mkdir(parents=True)
        options = (*self.convert, "-f", "raw", "-O", "qcow2")
        return [command("qemu-img", "convert", *options, image, self._disk)]

    def serve(self, listening: Path) -> list[Command]:
        return qemu_nbd(listening, self._disk, "-f", "qcow2")

    def take_out(self, target: Path) -> list[Command]:
        return [command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self._disk, target)]

    @property
    def _disk(self) -> Path:
        return self.folder / "disk.qcow2"


class QemuNbdZstd(QemuNbd):
    """Compressed clusters: read through zstd; a rewritten cluster is no longer compressed, so a
    disk that is written from end to end is not this one's but ``QemuNbdCompressing``'s.
    """

    name = "qcow2-zstd"
    title = "qemu-nbd, qcow2, zstd clusters"
    convert = ("-c", "-o", "compression_type=zstd")

    @classmethod
    def does(cls, job: str) -> bool:
        return job not in SEQUENTIAL and super().does(job)


class QemuNbdCompressing(EmptyDisk, QemuNbd):
    """An empty disk, made anew before each job, that compresses what is written.

    A cluster that is compressed already cannot be written so again: qemu-nbd answers EIO.
    """

    name = "qcow2-compressing"
    title = "qemu-nbd, qcow2, compressing each cluster with zstd, empty at first"

    @classmethod
    def does(cls, job: str) -> bool:
        return job in SEQUENTIAL

    def refresh(self) -> list[Command]:
        options = ("-f", "qcow2", "-o", "compression_type=zstd")
        return [command("qemu-img", "create", "-q", *options, self._disk, str(self.bytes))]

    def serve(self, listening: Path) -> list[Command]:
        below = "file.driver=qcow2,file.file.driver=file"
        disk = f"driver=compress,{below},file.file.filename={self._disk}"
        return qemu_nbd(listening, disk, "--image-opts")


class QemuNbdSnapshot(QemuNbd):
    """Just after an internal snapshot."""

    name = "qcow2-snapshot"
    title = "qemu-nbd, qcow2, just after an internal snapshot"
    state = "after a snapshot"
    serves_old = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.numbers = itertools.count()

    def prepare(self, image: Path, snapshots: int, branches: int) -> list[Command]:
        return [*super().prepare(image, snapshots, branches), self._keep(MADE)]

    def refresh(self) -> list[Command]:
        return [self._keep(f"s{next(self.numbers)}")]

    def serve_made(self, listening: Path) -> list[Command]:
        old = ("-f", "qcow2", "--read-only", f"--load-snapshot=snapshot.name={MADE}")
        return qemu_nbd(listening, self._disk, *old)

    def _keep(self, name: str) -> Command:
        return command("qemu-img", "snapshot", "-c", name, self._disk)


class QemuNbdChain(QemuNbd):
    """The top of a chain of ten overlays, made anew before each job."""

    name = "qcow2-chain10"
    title = "qemu-nbd, qcow2, chain of 10 overlays"
    state = "after ten overlays"
    depth = 10

    def refresh(self) -> list[Command]:
        files = [self.folder / "disk.qcow2", *self._overlays()]
        return [
            command("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", file)
            for below, file in itertools.pairwise(files)
        ]

    def serve(self, listening: Path) -> list[Command]:
        return qemu_nbd(listening, self._overlays()[-1], "-f", "qcow2")

    def take_out(self, target: Path) -> list[Command]:
        raise NotOffered("its overlays are made anew before each job")

    def _overlays(self) -> list[Path]:
        return [self.folder / f"overlay-{number}.qcow2" for number in range(self.depth)]


class VaultServer(NbdServer):
    """``blockvault serve``: the head of a branch, each write an event."""

    name = "blockvault"
    title = "blockvault"
    serves_old = True
    branch = "main"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.machine = vault.Blockvault(folder)

    @classmethod
    def missing(cls) -> str | None:
        return None if vault.offers("serve") else "no command 'serve' yet"

    @classmethod
    def version(cls) -> str:
        return first_version(*vault.program(), "--version")

    def start(self) -> list[Command]:
        return self.machine.start()

    def prepare(self, image: Path, snapshots: int, branches: int) -> list[Command]:
        made = self.machine.create_disk(image.stat().st_size, image)
        return [*made, *self.machine.tag(MADE, self.machine.snapshots[-1])]

    def serve(self, listening: Path) -> list[Command]:
        program = (*vault.program(), "-V", str(self.folder))
        return [command(*program, "serve", "--export", self.branch, "--socket", listening)]

    def take_out(self, target: Path) -> list[Command]:
        return self.machine.export(self.branch, target)

    def keep(self, name: str) -> list[Command]:
        return self.machine.snapshot(name)

    def uri(self, listening: Path) -> str:
        return f"nbd+unix:///{self.branch}/{vault.VOLUME}?socket={listening}"

    def uri_made(self, listening: Path) -> str:
        return f"nbd+unix:///{MADE}/{vault.VOLUME}?socket={listening}"


class VaultServerSnapshot(VaultServer):
    """Just after a snapshot."""

    name = "blockvault-snapshot"
    title = "blockvault, just after a snapshot"
    state = "after a snapshot"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.numbers = itertools.count()

    def refresh(self) -> list[Command]:
        number = next(self.numbers)
        return [*self.machine.change(0, number), *self.machine.snapshot(f"s{number}")]


class VaultServerMany(VaultServerSnapshot):
    """After many snapshots, and just after one more."""

    name = "blockvault-many"
    title = "blockvault, after many snapshots"
    state = "after many snapshots"

    def prepare(self, image: Path, snapshots: int, branches: int) -> list[Command]:
        names = [f"g{number}" for number in range(snapshots)]
        return [*super().prepare(image, snapshots, branches), *self.machine.grow(names)]


class VaultServerNested(VaultServer):
    """The last of many branches, each of which starts at a snapshot of the one before."""

    name = "blockvault-nested"
    title = "blockvault, on nested branches"
    state = "on nested branches"

    def prepare(self, image: Path, snapshots: int, branches: int) -> list[Command]:
        self.branch = f"nested-{branches - 1}"
        return [*super().prepare(image, snapshots, branches), *self.machine.nest(branches)]


def qemu_nbd(listening: Path, disk: str | Path, *how: str) -> list[Command]:
    """qemu-nbd that stays when a client goes, writeback as it comes."""
    options = ("--persistent", "--shared=8", "--cache=writeback", *how)
    return [command("qemu-nbd", *options, f"--socket={listening}", disk)]
