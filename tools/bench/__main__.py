"""The command line of the harness: measure, save, then report or compare."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from tools.bench import beforehand, compare, ending, host, inputs, report
from tools.bench.bench import Bench, say
from tools.bench.commands import CommandFailed
from tools.bench.inputs import Image
from tools.bench.peers.base import Contender
from tools.bench.plan import FULL, QUICK, Plan
from tools.bench.registry import ARCHIVES, MACHINES, SERVERS, everyone
from tools.bench.results import Results
from tools.bench.rows import (
    changes,
    collecting,
    growth,
    latency,
    live,
    memory,
    nbd,
    scale,
    series,
    start,
    vm,
)

K = TypeVar("K", bound=Contender)
SCENARIOS = (
    "series",
    "start",
    "latency",
    "growth",
    "changes",
    "memory",
    "scale",
    "nbd",
    "live",
    "collecting",
    "vm",
)
DOCS = Path(__file__).parents[2] / "docs"
PROGRESS = Path(__file__).with_name("progress.md")


def main(words: Sequence[str] | None = None) -> int:
    """Parse, run, report; the exit status is 2 for a request that makes no sense, and 1 where not
    all that was asked for could be measured.
    """
    options = _parser().parse_args(words)
    try:
        if options.list:
            return _list()
        # whatever is wrong with the request is found here, before hours are spent on it
        if options.report and find_spec("matplotlib") is None:
            raise ValueError("a report draws plots: pip install matplotlib (extra 'bench')")
        old = Results.load(options.compare) if options.compare else None
        results = _joined(options) if options.load else _measure(options)
        if options.report:
            _report(results)
        if old:
            print(compare.page(old, results))
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"bench: {beforehand.in_words(error)}", file=sys.stderr)
        return 2
    except (CommandFailed, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted; what was measured is in the results file")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench/run",
        description="Measure blockvault and its peers on the same work, in one interleaved run.",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small, under 3 minutes (default)")
    size.add_argument("--full", action="store_true", help="everything, as long as it takes")
    size.add_argument(
        "--load",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="measure nothing, take these results; the parts of one row are put together, of "
        "other runs later rows replace earlier ones",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="a folder made by tools/images, or files [MACHINE:]FILE; made up if not given",
    )
    parser.add_argument("--runs", type=int, metavar="N", help="how often each row is measured")
    parser.add_argument(
        "--part", type=_part, metavar="K/N", help="every Nth run from the Kth on; --load joins them"
    )
    parser.add_argument("--rows", nargs="+", choices=SCENARIOS, help="only these scenarios")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="only these (see --list)")
    parser.add_argument(
        "--jobs", nargs="+", metavar="KEY", help="of the NBD rows only these: seqread, fsync-1, ..."
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="the disk to measure on")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="JSON",
        help="where the raw results go, or those that were loaded, put together",
    )
    parser.add_argument("--report", action="store_true", help="write docs/benchmarks.md and plots")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="what changed since OLD.json")
    parser.add_argument("--list", action="store_true", help="name the contenders, missing ones too")
    return parser


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not 1 <= int(part) <= int(parts):
        raise ValueError(text)
    return int(part), int(parts)


def _list() -> int:
    for contender in everyone():
        missing = contender.missing()
        state = f"missing: {missing}" if missing else contender.version()
        print(f"{contender.name:<20} {contender.title:<50} {state}")
    return 0


def _measure(options: argparse.Namespace) -> Results:
    absent = [name for name in ("blake3", "zstandard") if find_spec(name) is None]
    if absent:
        words = f"{sys.executable} has no {' and no '.join(absent)}"
        raise ValueError(f"{words}: use the Python that blockvault is installed in (PYTHON=...)")
    plan = _plan(options)
    out = options.out or Path(f"bench-{plan.mode}.json")
    beforehand.writable(out)
    parent = options.work or Path("/var/tmp")
    beforehand.writable_folder(parent)
    work = Path(tempfile.mkdtemp(prefix="blockvault-bench-", dir=parent))
    try:
        results = _run(options, plan, work, out)
    finally:
        shutil.rmtree(work)
    say(f"results: {out}")
    return results


def _joined(options: argparse.Namespace) -> Results:
    """The results that were measured before, put together, and kept so where that is asked for."""
    if options.out:
        beforehand.writable(options.out)
    results, *others = map(Results.load, options.load)
    for other in others:
        results.merge(other)
    if options.out:
        results.save(options.out)
        say(f"results: {options.out}")
    return results


def _plan(options: argparse.Namespace) -> Plan:
    """The plan that was asked for; contenders that were named are those that take part."""
    plan = FULL if options.full else QUICK
    names = [each.name for each in everyone()]
    if options.runs is not None:
        if options.runs < 1:
            raise ValueError(f"--runs {options.runs}: each row is measured once at least")
        machine_runs = min(plan.machine_runs, options.runs)
        plan = dataclasses.replace(plan, runs=options.runs, machine_runs=machine_runs)
    if options.part:
        plan = dataclasses.replace(plan, part=options.part)
    part, parts = plan.part
    if part > plan.runs:
        raise ValueError(f"--part {part}/{parts}: no run of {plan.runs} is in it")
    if options.jobs:
        if unknown := set(options.jobs) - nbd.KEYS:
            raise ValueError(f"no job {', '.join(sorted(unknown))}")
        plan = dataclasses.replace(plan, nbd_jobs=tuple(options.jobs))
    if options.contenders:
        if unknown := set(options.contenders) - set(names):
            raise ValueError(f"no contender {', '.join(sorted(unknown))}; see --list")
        left_out = tuple(name for name in names if name not in options.contenders)
        plan = dataclasses.replace(plan, left_out=left_out)
    return plan


def _run(options: argparse.Namespace, plan: Plan, work: Path, out: Path) -> Results:
    """All scenarios; the file is written after each, so that an interrupted run is not lost.

    Where the harness itself fails in one, the others are measured before that is an error.
    """
    images = (
        inputs.given(options.images)
        if options.images
        else inputs.made_up(work / "images", plan.made_up)
    )
    results = Results(facts=_facts(plan, work, images, given=bool(options.images)))
    if plan.fill_memory:
        say(f"filled memory with {host.fill_memory(work) >> 20:,} MiB")
    bench = Bench(plan, results, work, images, out)
    failed = []
    for name in options.rows or plan.rows or SCENARIOS:
        before = time.monotonic()
        try:
            _scenario(name, bench)
        except (CommandFailed, subprocess.SubprocessError, OSError) as error:
            say(f"{name}: {beforehand.in_words(error)}")
            failed.append(name)
        finally:
            bench.save()
        say(f"{name}: {time.monotonic() - before:.0f} s")
    if failed:
        raise CommandFailed(f"not measured to the end: {', '.join(failed)}; {out} has the rest")
    return results


def _scenario(name: str, bench: Bench) -> None:
    archives, machines = _present(ARCHIVES, bench.plan), _present(MACHINES, bench.plan)
    runs: dict[str, Callable[[], None]] = {
        "series": lambda: series.run(bench, archives),
        "start": lambda: start.run(bench, list(dict.fromkeys((*archives, *machines)))),
        "latency": lambda: latency.run(bench, machines),
        "growth": lambda: growth.run(bench, machines),
        "changes": lambda: changes.run(bench, machines),
        "memory": lambda: memory.run(bench, archives),
        "scale": lambda: scale.run(bench, archives),
        "nbd": lambda: nbd.run(bench, _wanted(SERVERS, bench.plan)),
        "live": lambda: live.run(bench, _wanted(live.KINDS, bench.plan)),
        "collecting": lambda: collecting.run(bench, _wanted(collecting.KINDS, bench.plan)),
        "vm": lambda: vm.run(bench),
    }
    runs[name]()


def _present(kinds: Sequence[type[K]], plan: Plan) -> list[type[K]]:
    """Those that can run here; the others are named on the page."""
    return [kind for kind in _wanted(kinds, plan) if kind.missing() is None]


def _wanted(kinds: Sequence[type[K]], plan: Plan) -> list[type[K]]:
    return [kind for kind in kinds if kind.name not in plan.left_out]


def _facts(plan: Plan, work: Path, images: Sequence[Image], *, given: bool) -> dict[str, Any]:
    facts = host.facts(work)
    contenders = {kind.name: report.facts_of(kind) for kind in everyone()}
    for name in plan.left_out:
        contenders[name]["missing"] = contenders[name]["missing"] or "left out of this run"
    for name, each in contenders.items():
        if each["missing"]:
            say(f"not here: {name}: {each['missing']}")
    return {
        **facts,
        "mode": plan.mode,
        "runs": plan.runs,
        "plan": dataclasses.asdict(plan),
        "images": "given" if given else "made up",
        "inputs": [dataclasses.asdict(each) for each in inputs.survey(images)],
        "contenders": contenders,
    }


def _report(results: Results) -> None:
    from tools.bench import plots

    folder = DOCS / "benchmarks"
    drawn = plots.draw(results, folder)
    results.save(folder / "results.json")
    text = report.page(
        results,
        plots=drawn,
        folder=folder.name,
        raw=f"{folder.name}/results.json",
        progress=PROGRESS.read_text(),
    )
    (DOCS / "benchmarks.md").write_text(text)
    say(f"report: {DOCS / 'benchmarks.md'}")


if __name__ == "__main__":
    ending.heed()
    sys.exit(main())
