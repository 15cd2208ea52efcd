"""Snapshots of a disk that is being written to: what they take, and what the writer feels of them.

fio writes as fast as it can for some seconds; meanwhile snapshots are taken one after another with
a short pause; those count that are done before the writer is.  The same without snapshots is
measured in the same run: its worst request is what the machine does by itself.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from tools.bench import synthetic
from tools.bench.bench import Bench, Lane, say, turns
from tools.bench.commands import CommandFailed, Cost
from tools.bench.peers.nbd import NbdServer, QemuNbd, VaultServer
from tools.bench.peers.served_btrfs import QemuNbdBtrfs
from tools.bench.results import Row
from tools.bench.rows import limits, nbd
from tools.bench.rows.nbd import JOBS, written

GROUP = "snapshot while it is written to"
SNAPSHOT = Row(
    "live/snapshot",
    GROUP,
    "Snapshot of a disk while it is written to, the command",
    limit=limits.TEXT["commit"],
)
TAKEN = Row("live/taken", GROUP, "Snapshots that were done before the writer was", "")
WITH = Row("live/worst-with", GROUP, "Longest write request while snapshots are taken")
WITHOUT = Row("live/worst-without", GROUP, "Longest write request without snapshots")
RATE_WITH = Row("live/rate-with", GROUP, "4 KiB random write, depth 16, with snapshots", "IOPS")
RATE_WITHOUT = Row(
    "live/rate-without", GROUP, "4 KiB random write, depth 16, without snapshots", "IOPS"
)
PAUSE = 0.3
JOB = dataclasses.replace(next(job for job in JOBS if job.key == "randwrite-16"), times=8)
"""So long that a writer meets several snapshots, even those of who is slow."""


KINDS: tuple[type[NbdServer], ...] = (VaultServer, QemuNbdBtrfs)
"""Who can take a snapshot of a disk that is being served."""


def run(bench: Bench, kinds: Sequence[type[NbdServer]]) -> None:
    """Each run begins with disks that are made anew, and every second one with the snapshots."""
    for row in (SNAPSHOT, TAKEN, WITH, RATE_WITH):
        reason = "qemu-img cannot; QEMU and qemu-storage-daemon can, through their monitor"
        bench.results.leave_out(row, QemuNbd.name, "not run", reason)
    rows = (SNAPSHOT, TAKEN, WITH, RATE_WITH, WITHOUT, RATE_WITHOUT)
    here = [kind for kind in kinds if not nbd.left_out(bench, kind, rows)]
    if not here:
        return
    size = bench.plan.nbd_size
    synthetic.write(bench.input, synthetic.scattered(size, size))
    for number in bench.numbers():
        say(f"snapshots under load: run {number + 1} of {bench.plan.runs}")
        with bench.lanes(here) as lanes:
            for lane in lanes:
                lane.do(None, lane.contender.prepare, bench.input, 0, 0)
            for snapshots in turns((False, True), number):
                for lane in turns(lanes, number):
                    _one(bench, lane, snapshots=snapshots)
    for kind in here:
        if not bench.results.cell(SNAPSHOT, kind.name).samples:
            why = "none was done before the writer was"
            bench.results.leave_out(SNAPSHOT, kind.name, "failed", why)
    limits.commands(bench, SNAPSHOT.key)


def _one(bench: Bench, lane: Lane[NbdServer], *, snapshots: bool) -> None:
    row, rate = (WITH, RATE_WITH) if snapshots else (WITHOUT, RATE_WITHOUT)
    if lane.out is not None:
        bench.results.leave_out(row, lane.name, "not run", lane.out)
        return
    try:
        server = lane.contender
        keep = (lambda each: server.keep(f"live{each}")) if snapshots else None
        done = written(bench, server, JOB, keep, PAUSE)
    except CommandFailed as failure:
        lane.out = str(failure)
        bench.results.leave_out(row, lane.name, "failed", lane.out)
        return
    longest, speed = done.figures["clat_ns"]["max"] / 1e9, done.figures["iops"]
    bench.results.add(row, lane.name, longest)
    bench.results.add_served(rate, lane.name, speed, done.cost)
    done.show(lane, row, rate, *((TAKEN,) if snapshots else ()))
    if snapshots:
        bench.results.add(TAKEN, lane.name, done.in_time)
    if done.in_time:
        bench.results.add_cost(SNAPSHOT, lane.name, _usual(done.others_costs[: done.in_time]))
        lane.show(SNAPSHOT, done.others)


def _usual(costs: Sequence[Cost]) -> Cost:
    """One sample of many snapshots: what they mostly took, and the highest peak."""
    return Cost(
        wall=statistics.median(each.wall for each in costs),
        user=statistics.median(each.user for each in costs),
        system=statistics.median(each.system for each in costs),
        peak=max(each.peak for each in costs),
    )
