"""fio's jobs on a guest's disk: what each reads or writes, and when it comes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tools.bench.peers.nbd import SUSTAINED

HOT = 16 << 20  # of a disk's blocks are read again and again
RANDOM = ("--rw=randread", "--bs=4k", "--iodepth=16")
IN_ORDER = ("--rw=read", "--bs=256k", "--iodepth=4")


@dataclass(frozen=True, slots=True)
class Job:
    """One fio job on ``span`` bytes (0: the whole disk); a ``long`` one goes on for some time.

    With ``made`` it reads the disk as it was when it was made, whatever the jobs before have
    written.  A ``warm`` one comes behind another in which each of the bytes is read once, in that
    way.  To the protocol alone a job may be ``like`` another, shorter one.  It may go on
    ``times`` as long as others.
    """

    key: str
    title: str
    words: tuple[str, ...]
    long: bool = False
    span: int = 0
    made: bool = False
    warm: tuple[str, ...] = ()
    like: str = ""
    times: int = 1

    @property
    def side(self) -> str:
        return "read" if "read" in self.words[0] else "write"


def _job(key: str, title: str, kind: str, size: str, depth: int, *more: str) -> Job:
    return Job(key, title, (f"--rw={kind}", f"--bs={size}", f"--iodepth={depth}", *more))


def _warm(key: str, what: str, depth: int, span: int) -> Job:
    job = _job(key, f"4 KiB random read of {what}, warm, depth {depth}", "randread", "4k", depth)
    return replace(job, span=span, warm=RANDOM)


def _in_order(kind: str, depth: int) -> Job:
    title = f"256 KiB sequential {kind}, depth {depth}"
    return _job(f"seq{kind}-{depth}", title, kind, "256k", depth)


SEQWRITE = "256 KiB sequential write, depth 4"
OF_OLD = ", of an old state"
JOBS = (
    _job("randwrite-1", "4 KiB random write, depth 1", "randwrite", "4k", 1),
    _job("randwrite-16", "4 KiB random write, depth 16", "randwrite", "4k", 16),
    _job("randread-1", "4 KiB random read, depth 1", "randread", "4k", 1),
    _job("randread-16", "4 KiB random read, depth 16", "randread", "4k", 16),
    *(_warm(f"warmread-{depth}", "the whole disk", depth, 0) for depth in (1, 16)),
    *(_warm(f"hotread-{depth}", "16 MiB", depth, HOT) for depth in (1, 16)),
    _job("fsync-1", "4 KiB random write, fsync after each", "randwrite", "4k", 1, "--fsync=1"),
    _job("fsync-32", "4 KiB random write, fsync after 32", "randwrite", "4k", 16, "--fsync=32"),
    _job("seqwrite", SEQWRITE, "write", "256k", 4),
    Job("seqread", "256 KiB sequential read, depth 4", IN_ORDER),
    Job("seqread-warm", "256 KiB sequential read, warm, depth 4", IN_ORDER, warm=IN_ORDER),
    Job(
        "seqread-made",
        f"256 KiB sequential read, depth 4{OF_OLD}",
        IN_ORDER,
        made=True,
    ),
    Job(
        "randread-made",
        f"4 KiB random read, depth 16{OF_OLD}",
        RANDOM,
        made=True,
    ),
    *(_in_order("write", depth) for depth in (1, 16)),
    _job("seqwrite-end", f"{SEQWRITE}, flushed at the end", "write", "256k", 4, "--end_fsync=1"),
    *(_in_order("read", depth) for depth in (1, 16)),
    Job(
        SUSTAINED,
        "4 KiB random write, depth 16, on and on, flushed at the end",
        ("--rw=randwrite", "--bs=4k", "--iodepth=16", "--end_fsync=1"),
        long=True,
        like="randwrite-16",
    ),
)
