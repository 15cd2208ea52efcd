"""Which rows the first tables of the page are about, and beside whom.

Each line stands for one row, or for the biggest member of a series; each group of rows in which
blockvault has peers has one at least, whoever is ahead there.  A column is a family of peers, which
are in the state that its title names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

OURS = "blockvault"
ARCHIVES = {
    "borg": ("borg-fixed", "borg-default"),
    "restic": ("restic",),
    "bup, casync": ("bup", "casync"),
    "qcow2 files": ("qcow2-files", "qcow2-chain"),
    "btrfs": ("btrfs",),
}
DISKS = {
    "qcow2, internal": ("qcow2-internal",),
    "qcow2, chain": ("qcow2-chain",),
    "btrfs": ("btrfs",),
}
SERVERS = {
    "qcow2": ("qcow2",),
    "qcow2, zstd": ("qcow2-zstd", "qcow2-compressing"),
}
LATE_SERVERS = {
    "qcow2, just after a snapshot": ("qcow2-snapshot",),
    "qcow2, new chain of 10": ("qcow2-chain10",),
    "btrfs, just after a snapshot": ("btrfs-nbd",),
}
BUSY_SERVERS = {"qcow2": ("qcow2",), "btrfs": ("btrfs-nbd",)}
MACHINES = {
    "QEMU savevm": ("qemu-savevm",),
    "QEMU migrate": ("qemu-migrate",),
    "QEMU in the background": ("qemu-background",),
}
MACHINES_NOTE = """What `migrate` and the background snapshot write holds no disk; to restore the
latter is to start a QEMU with `-incoming`."""
LATE_NOTE = """The lines are states of blockvault's disk. Beside each stands the one figure of a
peer, of a disk in the state that its column names; the sentence at the top counts it once, in the
first line."""


class Line(NamedTuple):
    """``key`` is the row's, or that of a series with its ``@`` or ``/``; ``ours`` is the state of
    blockvault that the line is about, where that is not the plain one."""

    key: str
    title: str = ""
    ours: str = OURS


class Section(NamedTuple):
    """One table: its lines, the families of peers that are its columns, and a word about both."""

    title: str
    families: Mapping[str, Sequence[str]]
    lines: tuple[Line, ...]
    note: str = ""


LATE_JOBS = {
    "randwrite-1": "Random write, depth 1,",
    "randread-1": "Random read, depth 1,",
    "hotread-16": "Random read of 16 MiB, warm,",
    "fsync-1": "Random write, fsync after each,",
    "fsync-32": "Random write, fsync after 32,",
    "seqwrite": "256 KiB sequential write",
    "seqread": "256 KiB sequential read",
}
SECTIONS = (
    Section(
        "Disk images, kept state after state",
        ARCHIVES,
        (
            Line("import/all", "First imports of all images"),
            Line("import/unchanged"),
            Line("export/"),
            Line("size/", "Store after all images"),
            Line("diff"),
            Line("verify"),
            Line("gc/forget"),
            Line("gc/size"),
            Line("memory/series"),
        ),
    ),
    Section(
        "Disk images, made up: by their data, and with few data on big disks",
        ARCHIVES,
        tuple(
            Line(f"{rows}/{what}@")
            for rows in ("scale", "sparse")
            for what in ("import", "import again", "export")
        ),
    ),
    Section(
        "Snapshots of one disk, each a whole command",
        DISKS,
        (
            Line("start/version"),
            Line("latency/snapshot@"),
            Line("work/snapshot@", "The same, without starting the program"),
            Line("latency/branch@"),
            Line("latency/rollback@"),
            Line("changes/diff@"),
            Line("growth/snapshot@1000"),
            Line("growth/snapshot@"),
            Line("growth/read the oldest@"),
        ),
    ),
    Section(
        "A guest's disk over NBD, requests a second",
        SERVERS,
        tuple(
            Line(f"nbd/{job}")
            for job in (
                *("randwrite-1", "randwrite-16", "randread-1", "randread-16"),
                *("warmread-1", "warmread-16", "hotread-16"),
                *("fsync-1", "fsync-32", "seqwrite", "seqread", "seqread-warm"),
                *("exported", "sustained", "exported-worn"),
            )
        ),
    ),
    Section(
        "How long its requests wait",
        SERVERS,
        tuple(
            Line(f"nbd-latency/{job}")
            for job in (
                *("randwrite-1", "randwrite-16", "randread-1", "randread-16", "hotread-16"),
                *("fsync-1-flushes", "seqwrite", "seqread"),
            )
        ),
    ),
    Section(
        "The same disk with a history",
        LATE_SERVERS,
        (
            Line("nbd/randwrite-16", "Random write just after a snapshot", f"{OURS}-snapshot"),
            Line("nbd/randwrite-16", "Random write after many snapshots", f"{OURS}-many"),
            Line("nbd/randwrite-16", "Random write on nested branches", f"{OURS}-nested"),
            Line("nbd/randread-16", "Random read just after a snapshot", f"{OURS}-snapshot"),
            Line("nbd/randread-16", "Random read after many snapshots", f"{OURS}-many"),
            Line("nbd/randread-16", "Random read on nested branches", f"{OURS}-nested"),
            *(
                Line(f"nbd/{job}", f"{title} just after a snapshot", f"{OURS}-snapshot")
                for job, title in LATE_JOBS.items()
            ),
            Line("nbd/randread-made", "Random read of an old state"),
            Line("nbd/seqread-made", "256 KiB sequential read of an old state"),
        ),
        LATE_NOTE,
    ),
    Section(
        "A snapshot of that disk while it is written to",
        BUSY_SERVERS,
        (Line("live/snapshot"),),
    ),
    Section(
        "Running machines",
        MACHINES,
        tuple(
            Line(f"{size}/{row}")
            for size in ("vm", "vm-large")
            for row in ("pause", "held", "restore", "clone")
        ),
        MACHINES_NOTE,
    ),
)
