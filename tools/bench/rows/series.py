"""A series of images through every archive: import, again unchanged, export, verify, diff, sizes.

The images come one after another from one path, as a nightly copy of a machine's disk would; each
is copied there, untimed, before the contenders read it in turn, from the page cache.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tools.bench import inputs
from tools.bench.bench import Bench, Lane, say, turns
from tools.bench.commands import Cost
from tools.bench.inputs import Image
from tools.bench.peers.base import Archive
from tools.bench.results import LIMIT, Row
from tools.bench.rows import limits

GROUP = "series"
TOTAL = Row("import/all", GROUP, "First imports together", limit=limits.TEXT["import"])
UNCHANGED = Row(
    "import/unchanged", GROUP, "Import again, same bytes, newer file", "s", limits.TEXT["unchanged"]
)
VERIFY = Row("verify", GROUP, "Verify everything stored", limit=limits.TEXT["verify"])
DIFF = Row("diff", GROUP, "Diff of the first and the last state", limit=limits.TEXT["command"])
FORGET = Row(
    "gc/forget",
    GROUP,
    "Forget all but the newest state and collect",
    limit=limits.TEXT["collect"],
)
KEPT = Row("gc/size", GROUP, "Store after that", "B", limits.TEXT["kept"])
PEAK = Row(
    "memory/series", GROUP, "Peak memory of all imports and exports", "B", limits.TEXT["peak"]
)


def run(bench: Bench, kinds: Sequence[type[Archive]]) -> None:
    """Warm up on tiny images, thrown away but for the check of each round trip, then measure.

    Contenders that need more than a minute for a round are asked once, and the page says so.
    """
    tiny = inputs.made_up(bench.work / "tiny", bench.plan.warm_up)
    say("series: warm-up")
    with bench.lanes(kinds) as lanes:
        _Round(bench, lanes, tiny, 0, record=False).go()
        broken = {lane.name: lane.out for lane in lanes if lane.out}
    for number in bench.numbers():
        say(f"series: run {number + 1} of {bench.plan.runs}")
        taking_part = [kind for kind in kinds if number == 0 or kind.name not in bench.plan.once]
        with bench.lanes(taking_part) as lanes:
            for lane in lanes:
                lane.out = broken.get(lane.name)
            _Round(bench, lanes, bench.images, number, record=True).go()
        bench.save()
    limits.commands(bench, DIFF.key)


class _Round:
    """One run of the whole series over all lanes."""

    def __init__(
        self,
        bench: Bench,
        lanes: Sequence[Lane[Archive]],
        images: Sequence[Image],
        number: int,
        *,
        record: bool,
    ) -> None:
        self.bench, self.images, self.record = bench, images, record
        self.lanes = turns(lanes, number)
        self.costs: dict[str, list[Cost]] = defaultdict(list)
        self.check = number == 0
        main = [image for image in images if image.machine == images[0].machine]
        self.first, self.last = main[0], main[-1]

    def go(self) -> None:
        for lane in self.lanes:
            lane.do(None, lane.contender.create)
        for image in self.images:
            self._import(image)
        self._total()
        self._again()
        for image in dict.fromkeys((self.last, self.first)):
            self._export(image)
        for lane in self.lanes:
            lane.attempt(self._row(VERIFY), lane.contender.verify)
        if self.first != self.last:
            for lane in self.lanes:
                names = self.first.name, self.last.name
                lane.attempt(self._row(DIFF), lane.contender.diff, *names)
        self._forget()
        if self.record:
            self._peaks()
            self._limits()

    def _row(self, row: Row) -> Row | None:
        return row if self.record else None

    def _import(self, image: Image) -> None:
        inputs.place(image.path, self.bench.input)
        self.bench.clean_disk()
        row = self._row(_import_row(image))
        for lane in self.lanes:
            save = lane.contender.save
            cost = lane.do(row, save, self.bench.input, image.name, image.machine)
            if cost is not None:
                self.costs[lane.name].append(cost)
                self._size(lane, image)

    def _size(self, lane: Lane[Archive], image: Image) -> None:
        if self.record:
            self.bench.results.add(_size_row(image), lane.name, lane.contender.size())

    def _total(self) -> None:
        for lane in self.lanes:
            costs = self.costs[lane.name]
            if self.record and len(costs) == len(self.images):
                self.bench.results.add_cost(TOTAL, lane.name, _sum(costs))
            elif self.record:
                reason = lane.out or "not all images were taken in"
                self.bench.results.leave_out(TOTAL, lane.name, "failed", reason)

    def _again(self) -> None:
        """The last state once more: other times on the file, so that nobody may trust those."""
        inputs.place(self.last.path, self.bench.input)
        os.utime(self.bench.input)
        self.bench.clean_disk()
        for lane in self.lanes:
            save = lane.contender.save
            row = self._row(UNCHANGED)
            cost = lane.do(row, save, self.bench.input, "again", self.last.machine)
            if cost is not None:
                self.costs[lane.name].append(cost)

    def _export(self, image: Image) -> None:
        row = self._row(_export_row(image, old=image == self.first))
        for lane in self.lanes:
            target = self.bench.fresh_output()
            cost = lane.do(row, lane.contender.restore, image.name, target)
            if cost is None:
                continue
            self.costs[lane.name].append(cost)
            if self.check and not self._same(lane, target, image):
                self._put_out(lane, image, row)

    def _forget(self) -> None:
        """Of the first machine only the newest state is kept, and still comes back whole."""
        others = [image.name for image in self.images if image.machine != self.last.machine]
        gone = [image.name for image in self.images if image.machine == self.last.machine]
        for lane in self.lanes:
            kept = ["again", *others]
            if lane.attempt(self._row(FORGET), lane.contender.forget, gone, kept) is None:
                continue
            if self.record:
                self.bench.results.add(KEPT, lane.name, lane.contender.size())
            if self.check:
                self._check_kept(lane)

    def _check_kept(self, lane: Lane[Archive]) -> None:
        target = self.bench.fresh_output()
        lane.do(None, lane.contender.restore, "again", target)
        self.bench.clean_disk()
        if lane.out is None and not self._same(lane, target, self.last):
            self._put_out(lane, self.last, self._row(FORGET))

    def _put_out(self, lane: Lane[Archive], image: Image, row: Row | None) -> None:
        lane.out = f"{image.name} did not come back byte for byte"
        say(f"  {lane.name}: {lane.out}")
        if row is not None:
            self.bench.results.leave_out(row, lane.name, "failed", lane.out)

    def _same(self, lane: Lane[Archive], target: Path, image: Image) -> bool:
        return inputs.same_bytes(lane.contender.restored(target), image.path)

    def _peaks(self) -> None:
        for lane in self.lanes:
            if costs := self.costs[lane.name]:
                self.bench.results.add(PEAK, lane.name, max(cost.peak for cost in costs))
        self.bench.results.add(PEAK, LIMIT, limits.idle_peak())

    def _limits(self) -> None:
        results = self.bench.results
        series = limits.measure_series(self.bench, self.images)
        stored = 0.0
        for image in self.images:
            floor = limits.import_floor(series[image.name])
            results.add(_import_row(image), LIMIT, floor)
            stored += series[image.name]["stored"]
            results.add(_size_row(image), LIMIT, stored)
        results.add(TOTAL, LIMIT, sum(map(limits.import_floor, series.values())))
        results.add(VERIFY, LIMIT, limits.verify_floor(series))
        kept = self._kept_floor()
        results.add(KEPT, LIMIT, kept)
        gone = int(max(0.0, stored - kept))
        results.add(FORGET, LIMIT, limits.give_back_seconds(self.bench, gone))
        results.add(UNCHANGED, LIMIT, limits.unchanged_floor(series[self.last.name]))
        for image in dict.fromkeys((self.last, self.first)):
            row = _export_row(image, old=image == self.first)
            results.add(row, LIMIT, limits.export_floor(series[image.name], series))

    def _kept_floor(self) -> float:
        """Bytes of the states that are kept, counted by themselves."""
        others = [image for image in self.images if image.machine != self.last.machine]
        alone = limits.measure(self.bench, [self.last, *others])
        return sum(each["stored"] for each in alone.values())


def _import_row(image: Image) -> Row:
    title = f"First import of {image.name}"
    return Row(f"import/{image.name}", GROUP, title, limit=limits.TEXT["import"])


def _size_row(image: Image) -> Row:
    title = f"Store after {image.name}"
    return Row(f"size/{image.name}", GROUP, title, "B", limit=limits.TEXT["size"])


def _export_row(image: Image, *, old: bool) -> Row:
    title = f"Export of {image.name}" + (", the oldest state" if old else "")
    return Row(f"export/{image.name}", GROUP, title, limit=limits.TEXT["export"])


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(
        wall=sum(cost.wall for cost in costs),
        user=sum(cost.user for cost in costs),
        system=sum(cost.system for cost in costs),
        peak=max(cost.peak for cost in costs),
        settle=sum(cost.settle for cost in costs),
    )
