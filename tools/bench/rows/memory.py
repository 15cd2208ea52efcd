"""Peak memory and time of import and export by virtual size: the same data on bigger sparse disks.

Programs that read every hole are not asked for the biggest ones: they would read a tebibyte of
zeros, which is said in the table and not measured.  Who fails or takes too long is asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec

from tools.bench.bench import Bench, Lane, say, turns
from tools.bench.commands import Command
from tools.bench.peers.base import Archive
from tools.bench.plan import GIB
from tools.bench.results import Row
from tools.bench.rows.latency import sparse_image

GROUP = "big sparse disks"
P = ParamSpec("P")


def run(bench: Bench, kinds: Sequence[type[Archive]]) -> None:
    """Import, import again and export, with each size in turn."""
    for size in bench.plan.memory:
        out: dict[str, str | None] = {}
        sparse_image(bench, size, bench.plan.memory_data)
        for number in bench.numbers():
            say(f"big sparse disks: {size // GIB} GiB, run {number + 1}")
            with bench.lanes(kinds) as lanes:
                for lane in turns(lanes, number):
                    lane.limit = bench.plan.memory_limit
                    lane.out = out.get(lane.name) or bench.too_slow(lane)
                    if size > bench.plan.memory_readable and not lane.contender.skips_holes:
                        lane.out = "reads every hole"
                    _one(lane, bench, size)
                    out[lane.name] = lane.out


def _one(lane: Lane[Archive], bench: Bench, size: int) -> None:
    archive = lane.contender
    lane.do(None, archive.create)
    _timed(lane, "import", size, archive.save, bench.input, "first", "main")
    _timed(lane, "import again", size, archive.save, bench.input, "second", "main")
    _timed(lane, "export", size, archive.restore, "second", bench.fresh_output())
    bench.fresh_output()


def _timed(
    lane: Lane[Archive],
    what: str,
    size: int,
    spell: Callable[P, Sequence[Command]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> None:
    title = f"{what.capitalize()}, {size // GIB} GiB sparse disk"
    key = f"{what}@{size // GIB}GiB"
    time_row = Row(f"sparse/{key}", GROUP, title, series=f"sparse/{what}", work=float(size))
    peak_row = Row(
        f"sparse-memory/{key}",
        GROUP,
        f"{title}: peak memory",
        "B",
        series=f"sparse-memory/{what}",
        work=float(size),
    )
    cost = lane.do(time_row, spell, *args, **kwargs)
    if cost is not None:
        lane.bench.results.add(peak_row, lane.name, cost.peak)
    elif cell := lane.bench.results.cells.get(time_row.key, {}).get(lane.name):
        lane.bench.results.leave_out(peak_row, lane.name, cell.state, cell.reason)
