"""Import, unchanged import and export by amount of data: made-up images, all of it new.

The slope fitted over these rows says how cost grows: 1 is proportional to the data.
"""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.bench import Bench, say, turns
from tools.bench.peers.base import Archive
from tools.bench.plan import MIB
from tools.bench.results import Row
from tools.bench.rows.latency import sparse_image

GROUP = "by amount of data"


def run(bench: Bench, kinds: Sequence[type[Archive]]) -> None:
    """A disk is twice as big as its data, so that holes play a part."""
    for data in bench.plan.scale:
        sparse_image(bench, 2 * data, data)
        for number in range(bench.plan.runs):
            say(f"by amount of data: {data // MIB} MiB, run {number + 1}")
            with bench.lanes(kinds) as lanes:
                for lane in turns(lanes, number):
                    archive = lane.contender
                    lane.do(None, archive.create)
                    lane.do(_row("import", data), archive.save, bench.input, "one", "main")
                    lane.do(_row("import again", data), archive.save, bench.input, "two", "main")
                    lane.do(_row("export", data), archive.restore, "one", bench.fresh_output())


def _row(what: str, data: int) -> Row:
    return Row(
        f"scale/{what}@{data // MIB}MiB",
        GROUP,
        f"{what.capitalize()}, {data // MIB} MiB of data",
        series=f"scale/{what}",
        work=float(data),
    )
