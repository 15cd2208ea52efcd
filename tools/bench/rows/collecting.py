"""Collections beside a writer: what it feels of a gc that frees and moves a good part of the vault.

fio writes single blocks, one after another, for some seconds.  Meanwhile the vault has much that
is dead, a branch that was deleted and pruned; at one time gc collects it meanwhile, again and again
until the writer is done, at the other it is collected afterwards.  Each run has a vault of its own,
and begins with the one or the other by turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tools.bench import synthetic
from tools.bench.bench import Bench, Lane, say, turns
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
COLLECT = Row("collecting/gc", GROUP, "That gc, the command, which goes on behind the writer")
JOB = dataclasses.replace(next(job for job in JOBS if job.key == "randwrite-1"), long=True)
LITTER = 4
"""The part of the disk's size that dies before each run."""
KINDS: tuple[type[VaultServer], ...] = (VaultServer,)
"""Who collects garbage while its disk is in use: no peer does."""


def run(bench: Bench, kinds: Sequence[type[VaultServer]]) -> None:
    """As many runs as the plan has of these."""
    rows = (WITH, RATE_WITH, WITHOUT, RATE_WITHOUT, COLLECT)
    runs = bench.plan.collecting_runs
    here = [kind for kind in kinds if not nbd.left_out(bench, kind, rows, runs=runs)]
    if not here:
        return
    size = bench.plan.nbd_size
    synthetic.write(bench.input, synthetic.scattered(size, size))
    for number in list(bench.numbers())[:runs]:
        say(f"gc beside a writer: run {number + 1}")
        with bench.lanes(here) as lanes:
            for lane in lanes:
                lane.do(None, lane.contender.prepare, bench.input, 0, 0)
            for collecting in turns((False, True), number):
                for lane in lanes:
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
    slow, speed = done.figures["clat_ns"]["percentile"]["99.900000"] / 1e9, done.figures["iops"]
    bench.results.add(row, lane.name, slow)
    bench.results.add_served(rate, lane.name, speed, done.cost)
    done.show(lane, row, rate)
    if done.others_costs:
        bench.results.add_cost(COLLECT, lane.name, done.others_costs[0])
        lane.show(COLLECT, done.others)


def _litter(bench: Bench, server: VaultServer, number: int) -> None:
    """Store another disk on a branch of its own, and forget it."""
    size = bench.plan.nbd_size // LITTER
    litter = bench.input.with_name("litter.img")
    synthetic.write(litter, synthetic.scattered(size, size, first_seed=1000 + number))
    run_commands(server.machine.litter(litter, f"litter-{number}"), limit=bench.plan.time_limit)
    litter.unlink()
