"""Import, unchanged import and export by amount of data: made-up images, all of it new.

A line fitted through these rows says what is fixed and what each mebibyte costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.bench import Bench, say, turns
from tools.bench.inputs import Image
from tools.bench.peers.base import Archive
from tools.bench.plan import MIB
from tools.bench.results import LIMIT, Row
from tools.bench.rows import limits
from tools.bench.rows.latency import sparse_image

GROUP = "by amount of data"


def run(bench: Bench, kinds: Sequence[type[Archive]]) -> None:
    """A disk is twice as big as its data, so that holes play a part."""
    for data in bench.plan.scale:
        sparse_image(bench, 2 * data, data)
        bench.clean_disk()
        image = Image("made up", bench.input)
        for number in bench.numbers():
            say(f"by amount of data: {data // MIB} MiB, run {number + 1}")
            with bench.lanes(kinds) as lanes:
                for lane in turns(lanes, number):
                    lane.out = bench.too_slow(lane)
                    archive = lane.contender
                    lane.do(None, archive.create)
                    lane.do(_row("import", data), archive.save, bench.input, "one", "main")
                    lane.do(_row("import again", data), archive.save, bench.input, "two", "main")
                    lane.do(_row("export", data), archive.restore, "one", bench.fresh_output())
            bench.fresh_output()
            measured = limits.measure(bench, [image])
            floors = {
                "import": limits.import_floor(measured[image.name]),
                "import again": limits.unchanged_floor(measured[image.name]),
                "export": limits.export_floor(measured[image.name], measured),
            }
            for what, seconds in floors.items():
                bench.results.add(_row(what, data), LIMIT, seconds)


def _row(what: str, data: int) -> Row:
    return Row(
        f"scale/{what}@{data // MIB}MiB",
        GROUP,
        f"{what.capitalize()}, {data // MIB} MiB of data",
        limit=limits.TEXT["unchanged" if what == "import again" else what],
        series=f"scale/{what}",
        work=float(data),
    )
