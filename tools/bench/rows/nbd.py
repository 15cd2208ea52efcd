"""A guest's disk over NBD: fio against every server, in every state of a disk's history.

fio and the server share the machine, as a guest and its server do.  Each job gets a server of its
own, started for it and ended after it, so that its CPU and memory are the job's.  The value is
fio's; the sample's CPU and peak are the server's.  So reads over the whole disk begin cold, with
the data in the page cache but nothing decoded; before warm ones each block was read once, as the
job will read it; and what keeps its disk in memory is filled before each job, so that none pays for
memory that it is the first to use.  Each run begins with disks that are made anew.  When all have
done the same jobs, the disks are exported; behind that comes the job that writes on and on, for
those who are asked for it, and what that has left of their disks is exported too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench import synthetic
from tools.bench.bench import Bench, Lane, say, turns
from tools.bench.beside import repeated
from tools.bench.commands import Command, CommandFailed, Cost, command
from tools.bench.commands import run as run_commands
from tools.bench.peers.base import find_program
from tools.bench.peers.nbd import NbdServer, VaultServer
from tools.bench.peers.yardsticks import PROTOCOL, NbdkitMemory
from tools.bench.results import LIMIT, Row, State
from tools.bench.rows import limits
from tools.bench.rows.jobs import JOBS, Job
from tools.bench.servers import serving
from tools.bench.stated import FLUSHED, FLUSHES, LATENCY

GROUP = "NBD"
EXPORTED = "exported"
EXPORT = Row(f"nbd/{EXPORTED}", GROUP, "Export of the disk", limit=limits.TEXT["copy"])
EXPORT_WORN = Row(
    f"nbd/{EXPORTED}-worn",
    GROUP,
    "Export of the disk, after the random writes that went on and on",
    limit=limits.TEXT["copy"],
)
KEYS = frozenset({job.key for job in JOBS} | {EXPORTED})
"""What can be asked for."""


def missing() -> str | None:
    """Why these rows cannot be measured here."""
    return None if find_program("fio") else "fio not installed"


def left_out(bench: Bench, kind: type[NbdServer], rows: Iterable[Row], *, runs: int = 1) -> bool:
    """Whether a server cannot be measured in these rows; they say why, as who waits is told."""
    state: State = "not run"
    reason = kind.missing()
    if reason and issubclass(kind, VaultServer):
        state = "not built yet"
    elif not reason:
        reason = missing() if runs else "only in a full run"
    if reason is None:
        return False
    say(f"  {kind.name}: {reason}")
    for row in rows:
        bench.results.leave_out(row, kind.name, state, reason)
    return True


def run(bench: Bench, kinds: Sequence[type[NbdServer]]) -> None:
    """In each run a disk for each server; then jobs in turn, servers in turn within each job."""
    here = [kind for kind in kinds if not left_out(bench, kind, _asked(bench, kind))]
    if not here:
        return
    size = bench.plan.nbd_size
    synthetic.write(bench.input, synthetic.scattered(size, size))
    for number in bench.numbers():
        say(f"NBD: run {number + 1} of {bench.plan.runs}")
        with bench.lanes(here) as lanes:
            _run(bench, lanes, number)
        bench.save()


def _asked(bench: Bench, kind: type[NbdServer]) -> Iterator[Row]:
    """All that a server would be asked."""
    jobs = [job for job in _chosen(bench) if kind.does(job.key)]
    for job in jobs:
        yield from (_row(job), _latency_row(job))
    if _wanted(bench, EXPORTED) and kind.does(EXPORTED):
        yield EXPORT
        if any(job.long for job in jobs):
            yield EXPORT_WORN


def _run(bench: Bench, lanes: Sequence[Lane[NbdServer]], number: int) -> None:
    """One run, of disks that are made anew: what the run before has written is nobody's history."""
    plan = bench.plan
    for lane in lanes:
        spell = lane.contender.prepare
        if lane.do(None, spell, bench.input, plan.nbd_snapshots, plan.nbd_branches) is None:
            lane.out = lane.out or "no disk in this state"
    jobs = _chosen(bench)
    _all_of(bench, lanes, [job for job in jobs if not job.long], number)
    if any(_row(job).key in FLUSHED for job in jobs):
        limits.fsync_latency(bench)
    _export(bench, lanes, EXPORT, number)
    if long := [job for job in jobs if job.long]:
        _all_of(bench, lanes, long, number)
        worn = [lane for lane in lanes if any(lane.contender.does(job.key) for job in long)]
        _export(bench, worn, EXPORT_WORN, number)


def _all_of(
    bench: Bench, lanes: Sequence[Lane[NbdServer]], jobs: Sequence[Job], number: int
) -> None:
    for job in jobs:
        for lane in turns(lanes, number):
            if lane.contender.does(job.key):
                _measure(bench, lane, job)
            elif job.made:
                why = "it serves the newest state alone"
                bench.results.leave_out(_row(job), lane.name, "not offered", why)


def _export(bench: Bench, lanes: Sequence[Lane[NbdServer]], row: Row, number: int) -> None:
    if not _wanted(bench, EXPORTED):
        return
    bench.clean_disk()
    for lane in turns(lanes, number):
        if lane.contender.does(EXPORTED):
            lane.attempt(row, lane.contender.take_out, bench.fresh_output())
    bench.clean_disk()
    bench.results.add(row, LIMIT, limits.write_seconds(bench, bench.input))


def _row(job: Job) -> Row:
    return Row(f"nbd/{job.key}", GROUP, job.title, "IOPS", limit=PROTOCOL)


def _chosen(bench: Bench) -> list[Job]:
    return [job for job in JOBS if _wanted(bench, job.key)]


def _wanted(bench: Bench, key: str) -> bool:
    return not bench.plan.nbd_jobs or key in bench.plan.nbd_jobs


def _measure(bench: Bench, lane: Lane[NbdServer], job: Job) -> None:
    row, worst = _row(job), _latency_row(job)
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
            serve = lane.contender.serve_made if job.made else lane.contender.serve
            server_command = serve(listening)
            bench.clean_disk()
            with serving(server_command[0], listening) as server:
                run_commands([client], limit=bench.plan.time_limit)
            figures = figures_of(report, job.side)
            bench.results.add_served(row, lane.name, float(figures["iops"]), server.cost)
            _add_slowest(bench, lane, job, report)
    except CommandFailed as failure:
        lane.out = str(failure)
        for each in (row, worst):
            bench.results.leave_out(each, lane.name, "failed", lane.out)
        return
    if lane.name == NbdkitMemory.name:
        for like in (job, *(other for other in _chosen(bench) if other.like == job.key)):
            bench.results.add(_row(like), LIMIT, figures["iops"])
    lane.show(row, [client], beside=server_command, folder=Path(folder))


def _latency_row(job: Job) -> Row:
    """Of who flushes the flushes are told: it waits for them, and not for its writes."""
    if f"nbd/{job.key}" in FLUSHED:
        key, what = f"{LATENCY}{job.key}{FLUSHES}", "flushes"
    else:
        key, what = f"{LATENCY}{job.key}", "requests"
    return Row(key, "NBD latency", f"{job.title}: 99.9 % of {what} within")


def _add_slowest(bench: Bench, lane: Lane[NbdServer], job: Job, report: Path) -> None:
    """Of a job that is too short for a flush the rate is known, and no latency."""
    row = _latency_row(job)
    try:
        bench.results.add(row, lane.name, _slowest(report, job))
    except CommandFailed as failure:
        bench.results.leave_out(row, lane.name, "failed", str(failure))


def _slowest(report: Path, job: Job) -> float:
    """Seconds within which 99.9 % of what a job waits for was answered."""
    if f"nbd/{job.key}" in FLUSHED:
        times = figures_of(report, "sync")["lat_ns"]
    else:
        times = figures_of(report, job.side)["clat_ns"]
    return float(times["percentile"]["99.900000"]) / 1e9


class Written(NamedTuple):
    """What came of a job that writes, and of what was run meanwhile."""

    figures: dict[str, Any]  # fio's
    cost: Cost | None  # the server's
    others_costs: list[Cost]  # each time that the other commands were run
    in_time: int  # how many of those had ended before the job did
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
            serves = running.enter_context(serving(serve[0], listening))
            costs = running.enter_context(repeated(spell, pause)) if meanwhile else []
            run_commands([client], limit=bench.plan.time_limit)
            in_time = len(costs)
        figures = figures_of(report, job.side)
    first = others[0] if others else ()
    return Written(figures, serves.cost, costs, in_time, serve, client, first, Path(folder))


def figures_of(report: Path, side: str) -> dict[str, Any]:
    """fio's figures of its last job, of what it read or wrote."""
    found: dict[str, Any] = json.loads(report.read_text())["jobs"][-1][side]
    if "percentile" not in (found.get("clat_ns") or found["lat_ns"]):
        raise CommandFailed("fio: no request was answered in the time that it had")
    return found


def fio(bench: Bench, job: Job, uri: str, report: Path, before: tuple[str, ...] = ()) -> Command:
    """The client's command; its JSON goes to ``report``, since it prints other lines before.

    With ``before`` a job with these words comes first, over the whole disk.
    """
    seconds = job.times * (bench.plan.nbd_sustained if job.long else bench.plan.nbd_seconds)
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
