"""What it takes to start each program and do nothing, and blockvault's help."""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.bench import Bench, say, turns
from tools.bench.peers import vault
from tools.bench.peers.base import Contender
from tools.bench.results import Row
from tools.bench.rows import limits

GROUP = "start"
LIMIT = limits.TEXT["command"]
VERSION = Row("start/version", GROUP, "Start, say the version, end", limit=LIMIT)
HELP = Row("start/help", GROUP, "Start, show the help, end", limit=LIMIT)


def run(bench: Bench, kinds: Sequence[type[Contender]]) -> None:
    """Two turns for every run of the plan, since these are quick and small; one before them is
    thrown away.
    """
    say("start")
    with bench.lanes(kinds) as lanes:
        for lane in lanes:
            lane.do(None, lane.contender.start)
        for number in bench.numbers(2 * bench.plan.runs):
            for lane in turns(lanes, number):
                lane.do(VERSION, lane.contender.start)
                if isinstance(lane.contender, vault.Blockvault):
                    lane.do(HELP, lane.contender.help)
    limits.commands(bench, "start/")
