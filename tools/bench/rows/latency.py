"""Snapshot, tag, branch, rollback and diff of one live disk, by its virtual size.

Every disk holds the same data; only its size differs, and so should no time.  Before each snapshot
one block is changed, untimed.  The second set of rows takes off what the program needs to start
and do nothing, measured in the same turn: that is the work itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tools.bench import synthetic
from tools.bench.bench import Bench, Lane, say, turns
from tools.bench.commands import Command
from tools.bench.peers.base import Machine
from tools.bench.plan import GIB
from tools.bench.results import Row
from tools.bench.rows import limits

GROUP = "latency"
WORK_GROUP = "latency, without starting the program"


def run(bench: Bench, kinds: Sequence[type[Machine]]) -> None:
    """One run of every operation is made and thrown away before those that count."""
    for size in bench.plan.virtual:
        say(f"latency: {size // GIB} GiB")
        image = sparse_image(bench, size, bench.plan.latency_data)
        with bench.lanes(kinds) as lanes:
            for lane in lanes:
                lane.do(None, lane.contender.create_disk, size, image)
            image.unlink()
            for number in (0, *(number + 1 for number in bench.numbers())):
                bench.clean_disk()
                for lane in turns(lanes, number):
                    _operations(lane, size, number)
    limits.commands(bench, "latency/")
    limits.commands(bench, "work/")


def sparse_image(bench: Bench, size: int, data: int) -> Path:
    """An image of ``size`` bytes with ``data`` bytes of blocks spread over it."""
    synthetic.write(bench.input, synthetic.scattered(size, data))
    return bench.input


def _operations(lane: Lane[Machine], size: int, number: int) -> None:
    machine = lane.contender
    old, new = f"s{number}a", f"s{number}b"
    record = number > 0
    start = lane.do(None, machine.start)

    def timed(what: str, spell: Callable[..., Sequence[Command]], *names: str) -> None:
        row = _row(what, size, GROUP)
        cost = lane.attempt(row if record else None, spell, *names)
        if record and cost is not None and start is not None:
            work = max(0.0, cost.wall - cost.commands * start.wall)
            lane.bench.results.add(_row(what, size, WORK_GROUP), lane.name, work)

    lane.do(None, machine.change, 0, 2 * number)
    lane.do(None, machine.snapshot, old)
    lane.do(None, machine.change, 4096, 2 * number + 1)
    timed("snapshot", machine.snapshot, new)
    timed("tag", machine.tag, f"t{number}", new)
    timed("branch", machine.branch, f"b{number}", new)
    timed("diff", machine.compare, old, new)
    timed("rollback", machine.rollback, old)


def _row(what: str, size: int, group: str) -> Row:
    prefix = "latency" if group == GROUP else "work"
    return Row(
        f"{prefix}/{what}@{size // GIB}GiB",
        group,
        f"{what.capitalize()}, {size // GIB} GiB disk",
        limit=_limit(what, group),
        series=f"{prefix}/{what}",
        work=float(size),
    )


def _limit(what: str, group: str) -> str:
    """A diff only reads; the others must be durable when they return."""
    if group == GROUP:
        return limits.TEXT["command" if what == "diff" else "commit"]
    return "" if what == "diff" else limits.TEXT["fsync"]
