"""Peak memory and time of import and export by virtual size: the same data on bigger sparse disks.

Programs that read every hole are not asked for the biggest ones: they would read a tebibyte of
zeros, which is said in the table and not measured.  Who fails or takes too long is asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec

from tools.bench.bench import Bench, Lane, say, turns
from tools.bench.commands import Command
from tools.bench.inputs import Image
from tools.bench.peers.base import Archive
from tools.bench.plan import GIB
from tools.bench.results import LIMIT, Row
from tools.bench.rows import limits
from tools.bench.rows.latency import sparse_image

GROUP = "big sparse disks"
WORK = {
    "import": limits.TEXT["import"],
    "import again": limits.TEXT["unchanged"],
    "export": limits.TEXT["export"],
}
P = ParamSpec("P")


def run(bench: Bench, kinds: Sequence[type[Archive]]) -> None:
    """Import, import again and export, with each size in turn."""
    for size in bench.plan.memory:
        out: dict[str, str | None] = {}
        sparse_image(bench, size, bench.plan.memory_data)
        for number in bench.numbers():
            say(f"big sparse disks: {size // GIB} GiB, run {number + 1}")
            _limits(bench, size)
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
    time_row, peak_row = _rows(what, size)
    cost = lane.do(time_row, spell, *args, **kwargs)
    if cost is not None:
        lane.bench.results.add(peak_row, lane.name, cost.peak)
    elif cell := lane.bench.results.cells.get(time_row.key, {}).get(lane.name):
        lane.bench.results.leave_out(peak_row, lane.name, cell.state, cell.reason)


def _rows(what: str, size: int) -> tuple[Row, Row]:
    """Of the time of one command on a disk of that size, and of its memory."""
    title = f"{what.capitalize()}, {size // GIB} GiB sparse disk"
    key, work = f"{what}@{size // GIB}GiB", float(size)
    memory = f"{title}: peak memory"
    return (
        Row(f"sparse/{key}", GROUP, title, "s", WORK[what], f"sparse/{what}", work),
        Row(
            f"sparse-memory/{key}",
            GROUP,
            memory,
            "B",
            limits.TEXT["peak"],
            f"sparse-memory/{what}",
            work,
        ),
    )


def _limits(bench: Bench, size: int) -> None:
    """The floors are about the data: holes need no work."""
    image = Image("sparse", bench.input)
    series = limits.measure(bench, [image])
    data = series[image.name]
    floors = {
        "import": limits.import_floor(data),
        "import again": limits.unchanged_floor(data),
        "export": limits.export_floor(data, series),
    }
    for what, seconds in floors.items():
        time_row, peak_row = _rows(what, size)
        bench.results.add(time_row, LIMIT, seconds)
        bench.results.add(peak_row, LIMIT, limits.idle_peak())
