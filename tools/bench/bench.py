"""The stage on which scenarios run: places, turns, and what happens when a contender fails.

Each contender has a *lane*: its own folder and, in every scenario, a fresh instance.  In each run
the lanes take turns in another order, so that what the machine does meanwhile falls on all of
them.  A contender that fails is named with its last words and sits out the rest of the scenario.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

from tools.bench.commands import Command, CommandFailed, Cost, flush_disk, run, shown
from tools.bench.inputs import Image
from tools.bench.peers.base import Contender, NotOffered
from tools.bench.plan import Plan
from tools.bench.results import Results, Row
from tools.bench.stated import TIME_SAVED

C = TypeVar("C", bound=Contender)
P = ParamSpec("P")
T = TypeVar("T")


class Lane(Generic[C]):
    """One contender in one scenario."""

    def __init__(self, contender: C, bench: Bench) -> None:
        self.contender = contender
        self.name = contender.name
        self.bench = bench
        self.limit = bench.plan.time_limit
        self.out: str | None = None

    def do(
        self,
        row: Row | None,
        spell: Callable[P, Sequence[Command]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Cost | None:
        """Run what ``spell`` says and record it under ``row`` (None: prepare, measure nothing).

        Returns None, and says why in the row, where there is no answer.  A failure puts the lane
        out for the rest of the scenario.
        """
        return self._do(row, lambda: spell(*args, **kwargs), optional=False)

    def attempt(
        self,
        row: Row | None,
        spell: Callable[P, Sequence[Command]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Cost | None:
        """As ``do``, for steps that nothing builds on: a failure is said, the lane goes on."""
        return self._do(row, lambda: spell(*args, **kwargs), optional=True)

    def _do(
        self, row: Row | None, spell: Callable[[], Sequence[Command]], *, optional: bool
    ) -> Cost | None:
        results = self.bench.results
        if self.out is not None:
            if row is not None:
                results.leave_out(row, self.name, "not run", self.out)
            return None
        try:
            commands = spell()
            cost = run(
                commands, limit=self.limit, settle=self.bench.plan.settle and row is not None
            )
        except NotOffered as reason:
            if row is not None:
                results.leave_out(row, self.name, "not offered", str(reason))
            return None
        except CommandFailed as failure:
            self._failed(row, str(failure), optional)
            return None
        if row is not None:
            results.add_cost(row, self.name, cost)
            self.show(row, commands)
        return cost

    def show(
        self,
        row: Row,
        commands: Sequence[Command],
        *,
        beside: Sequence[Command] = (),
        folder: Path | None = None,
    ) -> None:
        """Keep what was run for a row, the first time that it is.  What went on ``beside`` the
        others is shown as a shell would start it; ``folder`` is one that was made for them.
        """
        spelled = self.bench.results.commands.setdefault(row.key, {})
        if self.name in spelled:
            return
        names = self.bench.names(self.contender) | ({folder: "OUT"} if folder else {})
        first = [f"{line} &" for line in shown(beside, names)]
        spelled[self.name] = [*first, *shown(commands, names)]

    def _failed(self, row: Row | None, words: str, optional: bool) -> None:
        say(f"  {self.name}: {words}")
        if row is not None:
            self.bench.results.leave_out(row, self.name, "failed", words)
        if not optional:
            self.out = words


class Bench:
    """What scenarios share: the plan, the results, the disk that is measured."""

    def __init__(
        self, plan: Plan, results: Results, work: Path, images: Sequence[Image], out: Path
    ) -> None:
        self.plan = plan
        self.results = results
        self.work = work
        self.images = images
        self.out = out
        self.began = time.monotonic()
        self.input = work / "input" / "disk.img"
        self.output = work / "output" / "disk.img"
        for folder in (self.input.parent, self.output.parent, work / "stores"):
            folder.mkdir(parents=True, exist_ok=True)

    def numbers(self, runs: int | None = None) -> Sequence[int]:
        """The runs of a scenario (the plan's unless told) that this part of a split run does.

        A number is the same run in whichever part it is done: it decides whose turn is first.
        """
        part, parts = self.plan.part
        return range(part - 1, runs or self.plan.runs, parts)

    def clean_disk(self) -> None:
        """Before what is measured: what was written until then, untimed, burdens nobody."""
        if self.plan.settle:
            flush_disk()

    def too_slow(self, lane: Lane[C]) -> str | None:
        """Why a contender sits out rows that are repeated for many sizes, if it does."""
        return TIME_SAVED if lane.name in self.plan.slow else None

    def save(self) -> None:
        """Write the results as they are, so that an interrupted run is not lost."""
        self.results.facts["duration"] = time.monotonic() - self.began
        self.results.facts["load_after"] = os.getloadavg()[0]
        self.results.save(self.out)

    @contextlib.contextmanager
    def lanes(self, kinds: Iterable[type[C]]) -> Iterator[list[Lane[C]]]:
        """Lanes with empty folders; whatever happens, mounts and files are gone afterwards.

        The folders are new ones each time: what cannot be given back is in nobody's way.
        """
        place = Path(tempfile.mkdtemp(dir=self.work / "stores"))
        lanes = [Lane(kind(place / kind.name), self) for kind in kinds]
        with contextlib.ExitStack() as closing:
            closing.callback(shutil.rmtree, place, ignore_errors=True)
            for lane in lanes:
                closing.callback(lane.contender.close)
            yield lanes

    def fresh_output(self) -> Path:
        """The path that restored images go to, in an empty folder."""
        shutil.rmtree(self.output.parent)
        self.output.parent.mkdir()
        return self.output

    def names(self, contender: Contender) -> dict[Path, str]:
        """How the long paths of this run are called where commands are shown."""
        return {
            contender.folder: "STORE",
            self.input: "disk.img",
            self.output: "restored.img",
            self.output.parent: "OUT",
            self.work: "WORK",
            Path(sys.executable): "python",
            Path(sys.executable).parent: "BIN",
        }


def turns(parts: Sequence[T], number: int) -> list[T]:
    """Lanes, or others, in the order of run ``number``: each starts one further than the last."""
    if not parts:
        return []
    first = number % len(parts)
    return [*parts[first:], *parts[:first]]


def say(text: str) -> None:
    """Progress, for the person who waits."""
    print(text, file=sys.stderr, flush=True)
