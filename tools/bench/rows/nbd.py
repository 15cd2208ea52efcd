"""A guest's disk over NBD: fio against every server, in every state of a disk's history.

fio and the server share the machine, as a guest and its server do.  Each job gets a server of its
own, started for it and ended after it, so that its CPU and memory are the job's.  The value is
fio's; the sample's CPU and peak are the server's.  So reads over the whole disk begin cold, with
the data in the page cache but nothing decoded; before warm ones each block was read once, as the
job will read it; and what keeps its disk in memory is filled before each job, so that none pays for
memory that it is the first to use.  Each run begins with disks that are made anew, and ends with
their export: by then they were written to at random.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench import synthetic
from tools.bench.bench import Bench, Lane, say, turns
from tools.bench.beside import repeated
from tools.bench.commands import Command, CommandFailed, command
from tools.bench.commands import run as run_commands
from tools.bench.peers.base import find_program
from tools.bench.peers.nbd import SUSTAINED, NbdServer, VaultServer
from tools.bench.peers.yardsticks import NbdkitMemory
from tools.bench.results import LIMIT, Row, Sample, State
from tools.bench.rows import limits
from tools.bench.servers import serving
from tools.bench.stated import FLUSHED

GROUP = "NBD"
HOT = 16 << 20  # of a disk's blocks are read again and again
RANDOM = ("--rw=randread", "--bs=4k", "--iodepth=16")
IN_ORDER = ("--rw=read", "--bs=256k", "--iodepth=4")
PROTOCOL = "client and protocol alone: nbdkit answering from memory"


@dataclass(frozen=True, slots=True)
class Job:
    """One fio job on ``span`` bytes (0: the whole disk); a ``long`` one goes on for some time.

    With ``made`` it reads the disk as it was when it was made, if the server still knows that,
    whatever the jobs before have written.  A ``warm`` one comes behind another in which each of the
    bytes is read once, in that way.  To the protocol alone a job may be ``like`` another, shorter
    one.
    """

    key: str
    title: str
    words: tuple[str, ...]
    long: bool = False
    span: int = 0
    made: bool = False
    warm: tuple[str, ...] = ()
    like: str = ""

    @property
    def side(self) -> str:
        return "read" if "read" in self.words[0] else "write"


def _job(key: str, title: str, kind: str, size: str, depth: int, *more: str) -> Job:
    return Job(key, title, (f"--rw={kind}", f"--bs={size}", f"--iodepth={depth}", *more))


def _warm(key: str, what: str, depth: int, span: int) -> Job:
    job = _job(key, f"4 KiB random read of {what}, warm, depth {depth}", "randread", "4k", depth)
    return replace(job, span=span, warm=RANDOM)


def _in_order(kind: str, depth: int, when: str = "") -> Job:
    title = f"256 KiB sequential {kind}, depth {depth}{when}"
    return _job(f"seq{kind}-{depth}", title, kind, "256k", depth)


JOBS = (
    _job("randwrite-1", "4 KiB random write, depth 1", "randwrite", "4k", 1),
    _job("randwrite-16", "4 KiB random write, depth 16", "randwrite", "4k", 16),
    _job("randread-1", "4 KiB random read, depth 1", "randread", "4k", 1),
    _job("randread-16", "4 KiB random read, depth 16", "randread", "4k", 16),
    *(_warm(f"warmread-{depth}", "the whole disk", depth, 0) for depth in (1, 16)),
    *(_warm(f"hotread-{depth}", "16 MiB", depth, HOT) for depth in (1, 16)),
    _job("fsync-1", "4 KiB random write, fsync after each", "randwrite", "4k", 1, "--fsync=1"),
    _job("fsync-32", "4 KiB random write, fsync after 32", "randwrite", "4k", 16, "--fsync=32"),
    _job("seqwrite", "256 KiB sequential write, depth 4", "write", "256k", 4),
    Job("seqread", "256 KiB sequential read, depth 4", IN_ORDER),
    Job("seqread-warm", "256 KiB sequential read, warm, depth 4", IN_ORDER, warm=IN_ORDER),
    Job(
        "seqread-made",
        "256 KiB sequential read, depth 4, of the disk before all those writes",
        IN_ORDER,
        made=True,
    ),
    Job(
        "randread-made",
        "4 KiB random read, depth 16, of the disk before all those writes",
        RANDOM,
        made=True,
    ),
    *(_in_order("write", depth) for depth in (1, 16)),
    Job(
        SUSTAINED,
        "4 KiB random write, depth 16, on and on, flushed at the end",
        ("--rw=randwrite", "--bs=4k", "--iodepth=16", "--end_fsync=1"),
        long=True,
        like="randwrite-16",
    ),
    # Of those who are asked for the minute of random writes, the disk is what that has left.
    *(_in_order("read", depth, ", after all those writes") for depth in (1, 16)),
)


EXPORTED = "exported"
EXPORT = Row(
    f"nbd/{EXPORTED}",
    GROUP,
    "Export of the disk after all those writes",
    limit=limits.TEXT["copy"],
)
KEYS = frozenset({job.key for job in JOBS} | {EXPORTED})
"""What can be asked for."""


def missing() -> str | None:
    """Why these rows cannot be measured here."""
    return None if find_program("fio") else "fio not installed"


def left_out(bench: Bench, rows: Iterable[Row], *, runs: int = 1) -> bool:
    """Whether rows about blockvault's server and a writer cannot be measured; they say why."""
    state: State = "not run"
    if reason := VaultServer.missing():
        state = "not built yet"
    elif not runs:
        reason = "only in a full run"
    else:
        reason = missing()
    if reason is None:
        return False
    say(f"not measured: {reason}")
    for row in rows:
        bench.results.leave_out(row, VaultServer.name, state, reason)
    return True


def run(bench: Bench, kinds: Sequence[type[NbdServer]]) -> None:
    """In each run a disk for each server; then jobs in turn, servers in turn within each job."""
    for kind in kinds:
        if reason := kind.missing() or missing():
            unbuilt = issubclass(kind, VaultServer) and kind.missing()
            _leave_out(bench, kind, "not built yet" if unbuilt else "not run", reason)
    here = [kind for kind in kinds if kind.missing() is None]
    if missing() or not here:
        say(f"NBD: {missing() or 'no server is here'}")
        return
    size = bench.plan.nbd_size
    synthetic.write(bench.input, synthetic.scattered(size, size))
    for number in bench.numbers():
        say(f"NBD: run {number + 1} of {bench.plan.runs}")
        with bench.lanes(here) as lanes:
            _run(bench, lanes, number)
        bench.save()


def _leave_out(bench: Bench, kind: type[NbdServer], state: State, reason: str) -> None:
    """Say of all that a server would be asked why it is not."""
    asked = [_row(job) for job in _chosen(bench) if kind.does(job.key)]
    if _wanted(bench, EXPORTED) and kind.does(EXPORTED):
        asked.append(EXPORT)
    for row in asked:
        bench.results.leave_out(row, kind.name, state, reason)


def _run(bench: Bench, lanes: Sequence[Lane[NbdServer]], number: int) -> None:
    """One run, of disks that are made anew: what the run before has written is nobody's history."""
    plan = bench.plan
    for lane in lanes:
        spell = lane.contender.prepare
        if lane.do(None, spell, bench.input, plan.nbd_snapshots, plan.nbd_branches) is None:
            lane.out = lane.out or "no disk in this state"
    for job in _chosen(bench):
        for lane in turns(lanes, number):
            if lane.contender.does(job.key):
                _measure(bench, lane, job)
    if any(_row(job).key in FLUSHED for job in _chosen(bench)):
        limits.fsync_latency(bench)
    if _wanted(bench, EXPORTED):
        for lane in turns(lanes, number):
            if lane.contender.does(EXPORTED):
                lane.attempt(EXPORT, lane.contender.take_out, bench.fresh_output())
        bench.results.add(EXPORT, LIMIT, limits.write_seconds(bench, bench.input))


def _row(job: Job) -> Row:
    return Row(f"nbd/{job.key}", GROUP, job.title, "IOPS", limit=PROTOCOL)


def _chosen(bench: Bench) -> list[Job]:
    return [job for job in JOBS if _wanted(bench, job.key)]


def _wanted(bench: Bench, key: str) -> bool:
    return not bench.plan.nbd_jobs or key in bench.plan.nbd_jobs


def _measure(bench: Bench, lane: Lane[NbdServer], job: Job) -> None:
    row = _row(job)
    worst = Row(f"nbd-latency/{job.key}", "NBD latency", f"{job.title}: 99.9 % of requests within")
    lane.do(None, lane.contender.refresh)
    if lane.out is not None:
        for each in (row, worst):
            bench.results.leave_out(each, lane.name, "not run", lane.out)
        return
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            listening = Path(folder, "nbd.sock")
            report = Path(folder, "fio.json")
            uri = lane.contender.uri_made if job.made else lane.contender.uri
            client = fio(bench, job, uri(listening), report, lane.contender.fill)
            server_command = lane.contender.serve(listening)
            bench.clean_disk()
            with serving(server_command[0], listening) as server:
                run_commands([client], limit=bench.plan.time_limit)
            figures = figures_of(report, job.side)
    except CommandFailed as failure:
        lane.out = str(failure)
        bench.results.leave_out(row, lane.name, "failed", lane.out)
        return
    cost = server.cost
    cpu, peak = (cost.cpu, cost.peak) if cost is not None else (None, None)
    bench.results.cell(row, lane.name).samples.append(Sample(float(figures["iops"]), cpu, peak))
    if lane.name == NbdkitMemory.name:
        for each in (job, *(other for other in _chosen(bench) if other.like == job.key)):
            bench.results.add(_row(each), LIMIT, figures["iops"])
    bench.results.add(worst, lane.name, figures["clat_ns"]["percentile"]["99.900000"] / 1e9)
    lane.show(row, [client], beside=server_command, folder=Path(folder))


class Written(NamedTuple):
    """What came of a job that writes, and of what was run meanwhile."""

    figures: dict[str, Any]  # fio's
    seconds: list[float]  # of each time that the other commands were run
    server: Sequence[Command]
    client: Command
    others: Sequence[Command]  # as they were the first time
    folder: Path

    def show(self, lane: Lane[Any], *rows: Row) -> None:
        """Keep what was run under rows that are about the writer."""
        running = [*self.server, self.client] if self.others else self.server
        for row in rows:
            lane.show(row, self.others or [self.client], beside=running, folder=self.folder)


def written(
    bench: Bench,
    server: NbdServer,
    job: Job,
    meanwhile: Callable[[int], Sequence[Command]] | None,
    pause: float = 0,
) -> Written:
    """Run a job that writes, and again and again what is to be run meanwhile, after a pause."""
    others: list[Sequence[Command]] = []

    def spell(number: int) -> Sequence[Command]:
        others.append(meanwhile(number) if meanwhile else ())
        return others[-1]

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        listening, report = Path(folder, "nbd.sock"), Path(folder, "fio.json")
        client = fio(bench, job, server.uri(listening), report)
        serve = server.serve(listening)
        bench.clean_disk()
        with ExitStack() as running:
            running.enter_context(serving(serve[0], listening))
            seconds = running.enter_context(repeated(spell, pause)) if meanwhile else []
            run_commands([client], limit=bench.plan.time_limit)
        figures = figures_of(report, job.side)
    first = others[0] if others else ()
    return Written(figures, seconds, serve, client, first, Path(folder))


def figures_of(report: Path, side: str) -> dict[str, Any]:
    """fio's figures of its last job, of what it read or wrote."""
    found: dict[str, Any] = json.loads(report.read_text())["jobs"][-1][side]
    return found


def fio(bench: Bench, job: Job, uri: str, report: Path, before: tuple[str, ...] = ()) -> Command:
    """The client's command; its JSON goes to ``report``, since it prints other lines before.

    With ``before`` a job with these words comes first, over the whole disk.
    """
    seconds = bench.plan.nbd_sustained if job.long else bench.plan.nbd_seconds
    whole = f"--size={bench.plan.nbd_size}"
    return command(
        "fio",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--size={job.span}" if job.span else whole,
        "--randrepeat=0",
        "--output-format=json",
        f"--output={report}",
        *(("--name=before", whole, *before) if before else ()),
        *(("--name=once", "--stonewall", *job.warm) if job.warm else ()),
        f"--name={job.key}",
        "--stonewall",
        *job.words,
        "--time_based",
        f"--runtime={seconds * 1000:.0f}ms",
    )
