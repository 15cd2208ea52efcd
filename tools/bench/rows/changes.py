"""Diff by what changed: the same disk, two snapshots, more and more blocks between them."""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.bench import Bench, say, turns
from tools.bench.peers.base import Machine
from tools.bench.plan import GIB
from tools.bench.results import Row
from tools.bench.rows import limits
from tools.bench.rows.latency import sparse_image

GROUP = "diff by changed blocks"
SIZE = 16 * GIB


def run(bench: Bench, kinds: Sequence[type[Machine]]) -> None:
    """Each pair of snapshots is made once, untimed, and compared in every run."""
    image = sparse_image(bench, SIZE, bench.plan.latency_data)
    with bench.lanes(kinds) as lanes:
        for lane in lanes:
            lane.do(None, lane.contender.create_disk, SIZE, image)
        for blocks in bench.plan.changed:
            say(f"diff: {blocks} blocks")
            names = f"before-{blocks}", f"after-{blocks}"
            for lane in lanes:
                lane.do(None, lane.contender.snapshot, names[0])
                stride = SIZE // blocks // 4096 * 4096
                lane.do(None, lane.contender.change, 0, blocks, blocks, stride)
                lane.do(None, lane.contender.snapshot, names[1])
            bench.clean_disk()
            for number in bench.numbers():
                for lane in turns(lanes, number):
                    lane.attempt(_row(blocks), lane.contender.compare, *names)
    limits.commands(bench, "changes/")


def _row(blocks: int) -> Row:
    return Row(
        f"changes/diff@{blocks}",
        GROUP,
        f"Diff, {blocks:,} scattered blocks changed on 16 GiB",
        limit=limits.TEXT["command"],
        series="changes/diff",
        work=float(blocks),
    )
