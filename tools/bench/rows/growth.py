"""The same operations on a disk that has many snapshots already, 1 to 10,000.

Getting there is not measured, but it is limited: a program that needs many minutes for the next
number of snapshots is shown with the number that it did not reach.  Blockvault takes a hundred of
those in one process, as whoever has thousands to take would; the others are commands, which start
quickly.  The page says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.bench import Bench, Lane, say, turns
from tools.bench.peers.base import Machine
from tools.bench.plan import GIB
from tools.bench.results import Row
from tools.bench.rows import limits
from tools.bench.rows.latency import sparse_image
from tools.bench.stated import GROWTH, ONE_BY_ONE

GROUP = "many snapshots"
CHANGES = ("snapshot", "branch", "rollback")
BATCH = 100  # snapshots between two looks at the clock


def run(bench: Bench, kinds: Sequence[type[Machine]]) -> None:
    """Grow every contender's history step by step, and measure at each of the plan's numbers."""
    image = sparse_image(bench, GIB, bench.plan.latency_data)
    with bench.lanes(kinds) as lanes:
        histories = [_History(lane) for lane in lanes]
        for lane in lanes:
            lane.do(None, lane.contender.create_disk, GIB, image)
        for count in bench.plan.snapshots:
            say(f"many snapshots: {count}")
            for history in histories:
                history.grow_to(count)
            bench.clean_disk()
            for number in bench.numbers():
                for lane in turns(lanes, number):
                    histories[lanes.index(lane)].measure(count, number)
    limits.commands(bench, GROWTH)


class _History:
    """One contender's line of snapshots."""

    def __init__(self, lane: Lane[Machine]) -> None:
        self.lane = lane
        self.names: list[str] = []

    def grow_to(self, count: int) -> None:
        """Take snapshots until there are ``count``, for at most the plan's time."""
        left = self.lane.bench.plan.grow_limit
        while len(self.names) < count and self.lane.out is None:
            wanted = min(BATCH, count - len(self.names))
            names = [f"g{len(self.names) + number}" for number in range(wanted)]
            cost = self.lane.do(None, self.lane.contender.grow, names)
            if cost is None:
                return
            self.names += names
            left -= cost.wall
            if left < 0 and len(self.names) < count:
                spent = self.lane.bench.plan.grow_limit
                reached = f"{len(self.names)} of {count} snapshots after {spent:.0f} s"
                self.lane.out = reached + ONE_BY_ONE

    def measure(self, count: int, number: int) -> None:
        """One of each: a snapshot, a read of the oldest state, a diff of the two newest, a branch
        of the newest, and at last a rollback to it.
        """
        machine = self.lane.contender
        self.lane.do(None, machine.change, 4096 * number, number)
        name = f"m{count}-{number}"
        if self.lane.do(_row("snapshot", count), machine.snapshot, name) is not None:
            self.names.append(name)
        oldest, before, newest = self._three()
        self.lane.attempt(_row("read the oldest", count), machine.read_old, oldest)
        self.lane.attempt(_row("diff of the newest two", count), machine.compare, before, newest)
        self.lane.attempt(_row("branch", count), machine.branch, f"b{count}-{number}", newest)
        self.lane.attempt(_row("rollback", count), machine.rollback, newest)

    def _three(self) -> tuple[str, str, str]:
        names = self.names or [""]
        return names[0], names[max(0, len(names) - 2)], names[-1]


def _row(what: str, count: int) -> Row:
    return Row(
        f"{GROWTH}{what}@{count}",
        GROUP,
        f"{what.capitalize()}, after {count:,} snapshots",
        limit=limits.TEXT["commit" if what in CHANGES else "command"],
        series=f"{GROWTH}{what}",
        work=float(count),
    )
