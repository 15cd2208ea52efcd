"""The published page, made from one results file and nothing else."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tools.bench import floors, growing, headlines
from tools.bench.plots import Plot
from tools.bench.results import LIMIT, Cell, Results, Row
from tools.bench.stated import stated
from tools.bench.text import amount, digits, spread, table

OPENING = """# Benchmarks

How blockvault stands beside its peers: the same work on the same machine, every contender in turn
in each run; figures are medians. Measured {days} on {processors} ({cores} cores, {memory}
of memory, {file_system}) with blockvault {commits}. Made by `tools/bench/run`, from
[all samples]({raw})."""

COSTS = """Processor seconds and peak memory of the same runs; behind a + the time that writing to
the disk took afterwards, where a program left much of it to the system:"""
NOT_IN_TURNS = "Some contenders were measured in runs of their own, so not in turn with the others."
UNWRITTEN = 0.1  # of a command's time, from which on that is shown

METHOD = """## Method

* The series, the start and the latency begin with a warm-up that is thrown away (in the series it
  checks each round trip byte for byte, and so does the first run); all else is measured from its
  first run on.
* In each run the contenders take turns, in an order that starts one further each time: in the
  series and over NBD at every step, elsewhere with all that a run does with one of them.
* Figures are medians of as many runs as stand above the table; behind those of fewer stands how
  many. ± is half the distance of the quartiles, shown from 5 % on.{once}
* Each command runs under a launcher of its own. Wall time is the launcher's clock; CPU and peak
  memory are the kernel's (`wait4`), children included. The peak is that of the biggest process;
  mapped pages of a file count, so a store that maps its file shows them.
* What the kernel does for a program counts as that program's only while it waits: btrfs compresses
  in threads of the kernel, so its processor seconds are too few.
* Before the first row the memory that is free is filled with a file: a virtual machine may get each
  page from its host only when it is first touched, which only who makes files longer would pay for.
* Input is in the page cache. After each command the disk is synced, not timed here but kept in the
  raw figures (`settle`): what a program left unwritten does not burden the next. So `cp` to btrfs
  and `qemu-img` end before their data is on the disk, blockvault's imports after.
* Sizes of stores are allocated bytes (`du`); for btrfs what the file system says is used.
* NBD: fio and the server share the machine. Each run begins with disks that are made anew. Each
  job has a server of its own, which begins when all that was written before is on the disk.
* Where a disk is served, processor seconds and memory are the server's.
* What a client has not flushed is as safe as each server makes it: qemu-nbd leaves it to the page
  cache, blockvault stores all but the last of it meanwhile; rows that flush wait for the disk.
  fio writes bytes that nothing compresses, so what compresses gains nothing by that here.
* An import of blockvault is two processes, of which the smaller hashes, in some 20 MB beside the
  peak of the bigger one.
* `borg compact` and `restic forget` are told to leave nothing unused (`--threshold 0`,
  `--max-unused 0`), as all others do; by themselves both leave some.
* All samples of a row are of one machine; where that is not the first one named above, the table
  says so.
* Images ({images}): {inputs}.
* {system}, Linux {kernel}, Python {python}; libraries of blockvault: {libraries}. Load of the
  machine before and after: {load}. All parts together took {minutes} minutes.
* To measure again: `tools/images/build DIR`, then `tools/bench/run --full --images DIR --report`;
  in parts: `--rows series --part 1/5 --out 1.json` and so on, then `--load *.json --report`.
  `--quick` takes three minutes and needs no images, `--compare OLD.json` says what changed since.

"""


def page(results: Results, *, plots: Sequence[Plot], folder: str, raw: str, progress: str) -> str:
    """``docs/benchmarks.md``.  ``folder`` holds the plots, and is, as ``raw``, relative to it;
    ``progress`` is the hand-written account of what was made faster."""
    results = stated(results)
    drawn: dict[str, list[str]] = {}
    for plot in plots:
        drawn.setdefault(plot.group, []).append(f"![{plot.title}]({folder}/{plot.name}.svg)")
    parts = [
        _opening(results, raw),
        "## In a minute\n\n" + headlines.page(results),
        _progress(progress),
        *(
            _group(results, group, rows, drawn.get(group, []))
            for group, rows in results.groups().items()
        ),
        growing.page(results),
        _method(results),
        _commands(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(results: Results, raw: str) -> str:
    facts = results.facts
    origins = {origin for key in results.rows for origin in results.origin(key)}
    days = sorted({origin.when[:10] for origin in origins})
    return OPENING.format(
        days=days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}",
        processors=" and ".join(_processors(results, results.rows.values())),
        cores=" and ".join(sorted({origin.cores for origin in origins}, key=int)),
        memory=amount(facts["memory"], "B"),
        file_system=" and ".join(sorted({origin.file_system for origin in origins})),
        commits=", ".join(sorted({origin.commit for origin in origins})),
        raw=raw,
    )


def _group(results: Results, group: str, rows: Sequence[Row], plots: Sequence[str]) -> str:
    names = _columns(results, rows)
    asked = _usual(results, rows)
    lines = [[row.title, *(_cell(results, row, name, asked) for name in names)] for row in rows]
    parts = [f"## {group[0].upper()}{group[1:]}", _runs(results, rows), table(["", *names], lines)]
    if any(cell.samples and cell.samples[0].cpu is not None for cell in _cells(results, rows)):
        parts += [COSTS, _costs(results, rows)]
    parts += ["\n".join(floors.notes(results, rows)), _reasons(results, rows), *plots]
    return "\n\n".join(part for part in parts if part)


def _runs(results: Results, rows: Sequence[Row]) -> str:
    """How many samples the figures of a table come from, and of which commit they are."""
    usual = _usual(results, rows)
    if not usual:
        return ""
    text = _figures(usual, _columns(results, rows))
    commits = sorted({origin.commit for row in rows for origin in results.origin(row.key)})
    where = _processors(results, rows)
    elsewhere = "" if where == [results.facts["processor"]] else f", on {' and '.join(where)}"
    turns = "" if all(results.in_turns(row.key) for row in rows) else f" {NOT_IN_TURNS}"
    return f"{text}, commit {', '.join(commits)}{elsewhere}.{turns}"


def _figures(runs: int, names: Sequence[str]) -> str:
    """What is stated of a cell's samples: of contenders the median, of limits the best."""
    if runs == 1:
        return "One run"
    if names == [LIMIT]:
        return f"The best of {runs} runs"
    return f"Medians of {runs} runs" + (", of limits the best" if LIMIT in names else "")


def _usual(results: Results, rows: Sequence[Row]) -> int:
    """How many samples most cells of a table have; of as many that is the greater number."""
    counts = Counter(len(cell.samples) for cell in _cells(results, rows) if cell.samples)
    return max(counts, key=lambda count: (counts[count], count), default=0)


def _processors(results: Results, rows: Iterable[Row]) -> list[str]:
    """Where some rows were measured, the machine of the facts first."""
    found = {origin.processor for row in rows for origin in results.origin(row.key)}
    return sorted(found, key=lambda name: (name != results.facts["processor"], name))


def _columns(results: Results, rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in results.cells[row.key])
    order = [*results.facts["contenders"], LIMIT]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _cells(results: Results, rows: Sequence[Row]) -> Iterator[Cell]:
    for row in rows:
        yield from results.cells[row.key].values()


def _cell(results: Results, row: Row, name: str, asked: int) -> str:
    """The median, and of how many samples where those are fewer than the table says."""
    summary = results.summary(row.key, name)
    if summary is None:
        return headlines.why(results, row, name)
    text = floors.cell(results, row) if name == LIMIT else spread(summary, row.unit)
    if summary.runs >= asked:
        return text
    return f"{text} ({summary.runs} run{'s' if summary.runs > 1 else ''})"


def _costs(results: Results, rows: Sequence[Row]) -> str:
    names = [name for name in _columns(results, rows) if name != LIMIT]
    lines = []
    for row in rows:
        texts = [_cost(results.cells[row.key].get(name)) for name in names]
        if any(text != "–" for text in texts):
            lines.append([row.title, *texts])
    return table(["", *names], lines)


def _cost(cell: Cell | None) -> str:
    if cell is None or cell.summary() is None or cell.samples[0].cpu is None:
        return "–"
    cpu = sorted(sample.cpu or 0.0 for sample in cell.samples)[len(cell.samples) // 2]
    peak = max(sample.peak or 0 for sample in cell.samples)
    text = f"{digits(cpu)} s, {amount(peak, 'B')}"
    left = statistics.median(sample.settle or 0.0 for sample in cell.samples)
    if left > UNWRITTEN * statistics.median(sample.value for sample in cell.samples):
        text += f", +{amount(left, 's')}"
    return text


def _reasons(results: Results, rows: Sequence[Row]) -> str:
    """Each reason once, with the contenders and rows that it stands for."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        for name, cell in results.cells[row.key].items():
            if cell.state != "measured":
                reasons.setdefault((name, cell.state, cell.reason), []).append(row.title)
    return "\n".join(
        f"* {name}, {state}: {reason} ({floors.some(titles)})"
        for (name, state, reason), titles in reasons.items()
    )


def _progress(progress: str) -> str:
    return f"## What was made faster\n\n{progress.strip()}" if progress.strip() else ""


def _method(results: Results) -> str:
    versions = [
        (name, facts["title"], facts["version"] or "–", facts["missing"] or "")
        for name, facts in results.facts["contenders"].items()
    ]
    facts = results.facts
    inputs = ", ".join(
        f"{each['name']} ({amount(each['data'], 'B')} of data, {amount(each['new'], 'B')} new)"
        for each in facts["inputs"]
    )
    text = METHOD.format(
        libraries=", ".join(f"{n} {v}" for n, v in facts["libraries"].items()),
        inputs=inputs,
        load=f"{facts['load_before']:.1f} and {facts['load_after']:.1f}",
        minutes=f"{facts['duration'] / 60:.0f}",
        once=_once(facts["plan"].get("once", ())),
        **{name: facts[name] for name in ("images", "system", "kernel", "python")},
    )
    head = ("", "what", "version", "missing because")
    return text + table(head, versions)


def _once(names: Sequence[str]) -> str:
    """Who is asked once, since a round takes it minutes."""
    return f" In the series {', '.join(names)} take part in one run only." if names else ""


def _commands(results: Results) -> str:
    lines: list[str] = []
    for key, spelled in results.commands.items():
        if spelled:  # other rows are about the same commands, or about none
            lines.append(f"# {results.rows[key].title}")
            lines += [f"{name:<16} {_in_a_row(commands)}" for name, commands in spelled.items()]
            lines.append("")
    body = "\n".join(lines).rstrip()
    return (
        "## Commands\n\n<details><summary>Exactly what was run</summary>\n\n"
        f"```sh\n{body}\n```\n\n</details>"
    )


def _in_a_row(commands: Sequence[str]) -> str:
    """One after the other, but for those that go on beside what follows."""
    return " && ".join(commands).replace("& && ", "& ")


def facts_of(contender: Any) -> dict[str, Any]:
    """What the page says about one contender class."""
    missing = contender.missing()
    return {
        "title": contender.title,
        "missing": missing,
        "yardstick": not contender.keeps_history,
        "version": None if missing else contender.version(),
    }
