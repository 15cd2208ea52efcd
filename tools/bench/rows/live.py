"""Snapshots of a disk that is being written to: what they take, and what the writer feels of them.

fio writes as fast as it can for some seconds; meanwhile snapshots are taken one after another with
a short pause.  The same without snapshots is measured in the same run: its worst request is what
the machine does by itself.
"""

from __future__ import annotations

import statistics

from tools.bench import synthetic
from tools.bench.bench import Bench, Lane, say
from tools.bench.commands import CommandFailed
from tools.bench.peers.nbd import QemuNbd, VaultServer
from tools.bench.results import Row
from tools.bench.rows import nbd
from tools.bench.rows.nbd import JOBS, written

GROUP = "snapshot while it is written to"
SNAPSHOT = Row("live/snapshot", GROUP, "Snapshot of a disk under load, the command")
WITH = Row("live/worst-with", GROUP, "Longest write request while snapshots are taken")
WITHOUT = Row("live/worst-without", GROUP, "Longest write request without snapshots")
RATE_WITH = Row("live/rate-with", GROUP, "4 KiB random write, depth 16, with snapshots", "IOPS")
RATE_WITHOUT = Row(
    "live/rate-without", GROUP, "4 KiB random write, depth 16, without snapshots", "IOPS"
)
PAUSE = 0.3
JOB = next(job for job in JOBS if job.key == "randwrite-16")


def run(bench: Bench) -> None:
    """blockvault only: for the others it takes a running hypervisor to do it."""
    for row in (SNAPSHOT, WITH, RATE_WITH):
        reason = "qemu-img cannot; a running QEMU can, through its monitor"
        bench.results.leave_out(row, QemuNbd.name, "not offered", reason)
    if nbd.left_out(bench, (SNAPSHOT, WITH, RATE_WITH, WITHOUT, RATE_WITHOUT)):
        return
    size = bench.plan.nbd_size
    synthetic.write(bench.input, synthetic.scattered(size, size))
    with bench.lanes([VaultServer]) as (lane,):
        lane.do(None, lane.contender.prepare, bench.input, 0, 0)
        for number in bench.numbers():
            say(f"snapshots under load: run {number + 1} of {bench.plan.runs}")
            for snapshots in (False, True):
                _one(bench, lane, number, snapshots=snapshots)


def _one(bench: Bench, lane: Lane[VaultServer], number: int, *, snapshots: bool) -> None:
    row, rate = (WITH, RATE_WITH) if snapshots else (WITHOUT, RATE_WITHOUT)
    if lane.out is not None:
        bench.results.leave_out(row, lane.name, "not run", lane.out)
        return
    try:
        machine = lane.contender.machine
        done = written(
            bench,
            lane.contender,
            JOB,
            (lambda each: machine.snapshot(f"live{number}-{each}")) if snapshots else None,
            PAUSE,
        )
    except CommandFailed as failure:
        lane.out = str(failure)
        bench.results.leave_out(row, lane.name, "failed", lane.out)
        return
    bench.results.add(row, lane.name, done.figures["clat_ns"]["max"] / 1e9)
    bench.results.add(rate, lane.name, done.figures["iops"])
    done.show(lane, row, rate)
    if done.seconds:
        bench.results.add(SNAPSHOT, lane.name, statistics.median(done.seconds))
        lane.show(SNAPSHOT, done.others)
