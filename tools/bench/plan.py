"""How much work a run does: a quick one for a developer, a full one for the published page."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes in bytes, times in seconds.  Every scenario reads what it needs from here."""

    mode: str
    runs: int
    made_up: int  # size of each image where no real ones are given
    scale: tuple[int, ...]  # bytes of data in the images of the scale rows
    virtual: tuple[int, ...]  # disk sizes of the latency rows
    latency_data: int  # data on those disks
    snapshots: tuple[int, ...]  # numbers of snapshots of the growth rows
    grow_limit: float  # how long a contender may take to get to the next number
    changed: tuple[int, ...]  # blocks that differ in the changes rows
    memory: tuple[int, ...]  # disk sizes of the memory rows
    memory_data: int
    memory_readable: int  # up to this size programs that read holes take part
    memory_limit: float  # time for one command there
    nbd_size: int
    nbd_seconds: float
    nbd_sustained: float  # seconds of the job that writes on and on
    nbd_jobs: tuple[str, ...]  # empty: all of them
    nbd_snapshots: int
    nbd_branches: int
    collecting_runs: int
    machine_runs: int  # of tools.bench.machines, each with its own rounds
    machine_rounds: int
    time_limit: float  # for one command
    rows: tuple[str, ...] = ()  # the scenarios, where none are asked for; empty: all of them
    left_out: tuple[str, ...] = ()  # contenders that would take too long
    slow: tuple[str, ...] = ()  # those left out of the rows by amount of data and of disk
    once: tuple[str, ...] = ()  # those asked in the first run of the series only: it takes minutes
    part: tuple[int, int] = (1, 1)  # which of how many parts of the runs this is
    warm_up: int = 4 * MIB  # size of the images of the series' warm-up
    settle: bool = True  # sync the disk between what is measured
    fill_memory: bool = False  # use all memory that is free before the first row


QUICK = Plan(
    mode="quick",
    runs=5,
    rows=("series", "start", "latency", "changes", "nbd", "live"),
    made_up=16 * MIB,
    scale=(),
    virtual=(1 * GIB, 1024 * GIB),
    latency_data=4 * MIB,
    snapshots=(1, 50),
    grow_limit=5,
    changed=(16, 1000),
    memory=(64 * GIB,),
    memory_data=16 * MIB,
    memory_readable=4 * GIB,
    memory_limit=20,
    nbd_size=64 * MIB,
    nbd_seconds=0.3,
    nbd_sustained=5,
    nbd_jobs=("randwrite-16", "hotread-16"),
    nbd_snapshots=20,
    nbd_branches=3,
    collecting_runs=0,
    machine_runs=0,
    machine_rounds=0,
    time_limit=30,
    left_out=(
        "borg-default",
        "restic",
        "bup",
        "casync",
        "blockvault-snapshot",
        "blockvault-many",
        "blockvault-nested",
        "qcow2-chain",
        "qcow2-snapshot",
        "qcow2-chain10",
        "qcow2-zstd",
        "qcow2-compressing",
        "btrfs-nbd",
        "qemu-raw",
        "nbdkit-file",
    ),
)

FULL = Plan(
    mode="full",
    runs=5,
    made_up=512 * MIB,
    scale=(16 * MIB, 64 * MIB, 256 * MIB),
    virtual=(1 * GIB, 64 * GIB, 1024 * GIB),
    latency_data=64 * MIB,
    snapshots=(1, 10, 100, 1000, 10_000),
    grow_limit=300,
    changed=(16, 256, 4096),
    memory=(1 * GIB, 64 * GIB, 1024 * GIB),
    memory_data=64 * MIB,
    memory_readable=1 * GIB,
    memory_limit=60,
    nbd_size=1 * GIB,
    nbd_seconds=1.5,
    nbd_sustained=60,
    nbd_jobs=(),
    nbd_snapshots=1000,
    nbd_branches=100,
    collecting_runs=5,
    machine_runs=5,
    machine_rounds=3,
    fill_memory=True,
    time_limit=900,
    slow=("bup", "casync"),
    once=("bup", "casync"),
    left_out=("nbdkit-file",),
)
