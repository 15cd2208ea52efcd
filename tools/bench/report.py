"""The published page, made from one results file and nothing else."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tools.bench import floors, growing, headlines, method
from tools.bench.plots import Plot
from tools.bench.results import LIMIT, Cell, Origin, Results, Row
from tools.bench.scope import ACCELERATOR, NOT_NOTED
from tools.bench.stated import stated
from tools.bench.text import amount, digits, spread, table

OPENING = """# Benchmarks

How blockvault stands beside its peers: the same work on the same machine, every contender in turn
in each run; figures are medians. Measured {days} on {processors} ({cores} cores, {memory}
of memory, {file_system}) with blockvault {commits}.
Made by `tools/bench/run`, from [all samples]({raw})."""

COSTS = """Processor seconds and peak memory of the same runs; behind a + the time that writing to
the disk took afterwards, where a program left much of it to the system:"""
NOT_IN_TURNS = "Some contenders were measured in runs of their own, so not in turn with the others."
UNWRITTEN = 0.1  # of a command's time, from which on that is shown


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
        method.page(results),
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
        commits=_dated(origins),
        raw=raw,
    )


def _dated(origins: Iterable[Origin]) -> str:
    """Each commit with the days on which it was measured."""
    found: dict[str, set[str]] = {}
    for origin in origins:
        found.setdefault(origin.commit, set()).add(origin.when[:10])
    return ", ".join(
        f"{commit} ({', '.join(sorted(days))})" for commit, days in sorted(found.items())
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
    scopes = [results.scope(row.key) for row in rows]
    under = sorted({scope.get(ACCELERATOR, NOT_NOTED) for scope in scopes} - {NOT_NOTED})
    guests = f", guests under {' and '.join(under)}" if under else ""
    return f"{text}, commit {', '.join(commits)}{elsewhere}{guests}.{turns}"


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
