"""Collections beside a writer: what it feels of a gc that frees and moves a good part of the vault.

fio writes single blocks, one after another, for some seconds.  Meanwhile the vault has much that
is dead, a branch that was deleted and pruned; in one half of the runs gc collects it at the same
time, again and again until the writer is done, in the other half it is collected afterwards.
"""

from __future__ import annotations

import dataclasses

from tools.bench import synthetic
from tools.bench.bench import Bench, Lane, say
from tools.bench.commands import CommandFailed
from tools.bench.commands import run as run_commands
from tools.bench.peers.nbd import VaultServer
from tools.bench.results import Row
from tools.bench.rows import nbd
from tools.bench.rows.nbd import JOBS, written

GROUP = "gc while a disk is written to"
WRITE = "4 KiB random write, depth 1"
WITH = Row("collecting/slow-with", GROUP, f"{WRITE}: 99.9 % within, during gc")
WITHOUT = Row("collecting/slow-without", GROUP, f"{WRITE}: 99.9 % within, without gc")
RATE_WITH = Row("collecting/rate-with", GROUP, f"{WRITE}, during gc", "IOPS")
RATE_WITHOUT = Row("collecting/rate-without", GROUP, f"{WRITE}, without gc", "IOPS")
COLLECT = Row("collecting/gc", GROUP, "That gc, the command")
JOB = dataclasses.replace(next(job for job in JOBS if job.key == "randwrite-1"), long=True)
LITTER = 4
"""The part of the disk's size that dies before each run."""


def run(bench: Bench) -> None:
    """blockvault only: no peer collects garbage while its disk is in use."""
    rows = (WITH, RATE_WITH, WITHOUT, RATE_WITHOUT, COLLECT)
    if nbd.left_out(bench, rows, runs=bench.plan.collecting_runs):
        return
    size = bench.plan.nbd_size
    synthetic.write(bench.input, synthetic.scattered(size, size))
    with bench.lanes([VaultServer]) as (lane,):
        lane.do(None, lane.contender.prepare, bench.input, 0, 0)
        for number in list(bench.numbers())[: bench.plan.collecting_runs]:
            say(f"gc beside a writer: run {number + 1}")
            for collecting in (False, True):
                _one(bench, lane, 2 * number + collecting, collecting=collecting)


def _one(bench: Bench, lane: Lane[VaultServer], number: int, *, collecting: bool) -> None:
    row, rate = (WITH, RATE_WITH) if collecting else (WITHOUT, RATE_WITHOUT)
    if lane.out is not None:
        bench.results.leave_out(row, lane.name, "not run", lane.out)
        return
    server = lane.contender
    try:
        _litter(bench, server, number)
        collect = (lambda _: server.machine.collect()) if collecting else None
        done = written(bench, server, JOB, collect)
        run_commands(server.machine.collect(), limit=bench.plan.time_limit)
    except CommandFailed as failure:
        lane.out = str(failure)
        bench.results.leave_out(row, lane.name, "failed", lane.out)
        return
    bench.results.add(row, lane.name, done.figures["clat_ns"]["percentile"]["99.900000"] / 1e9)
    bench.results.add(rate, lane.name, done.figures["iops"])
    done.show(lane, row, rate)
    if done.seconds:
        bench.results.add(COLLECT, lane.name, done.seconds[0])
        lane.show(COLLECT, done.others)


def _litter(bench: Bench, server: VaultServer, number: int) -> None:
    """Store another disk on a branch of its own, and forget it."""
    size = bench.plan.nbd_size // LITTER
    litter = bench.input.with_name("litter.img")
    synthetic.write(litter, synthetic.scattered(size, size, first_seed=1000 + number))
    run_commands(server.machine.litter(litter, f"litter-{number}"), limit=bench.plan.time_limit)
    litter.unlink()
