"""The part of the page that says how cost grows with work: what is fixed, and what each unit adds.

The rows of a series differ in one number of their titles, such as ``16`` blocks or ``64`` GiB.
That number is the N of a table's lines and the unit of their costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tools.bench.results import LIMIT, Results, Row, Unit
from tools.bench.stats import growth, slope
from tools.bench.text import amount, table

FLAT = 0.05  # of the fixed part: what grows by less over the whole series is called flat
ROUGH = 0.2  # of a median: a line that misses one by more is marked
NOTHING = 0.001  # of the smallest cost: a fixed part that is less is not shown
FIXED = 0.1  # of the smallest cost: where more is fixed, an exponent is not about the work

OPENING = """## How cost grows with work

What a command costs in any case, such as the start of its program, and what each unit of N adds to
that: least squares through the medians, by the parts of them that are missed; neither is negative.
What grows by less than 5 % from the smallest N to the largest is called flat, and a ~ stands before
what misses a median by more than a fifth. The exponent of a power law (1 is proportional) is given
only where less than a tenth of the smallest cost is fixed; else it would be about the fixed part.

"""


class Series(NamedTuple):
    """Rows whose titles differ in a number, which each of ``numbers`` is; ``title`` has an N."""

    title: str
    rows: Sequence[Row]
    numbers: Sequence[float]


def page(results: Results) -> str:
    """A table for each group of rows that has a series."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in results.rows.values():
        if row.series:
            found.setdefault(row.group, {}).setdefault(row.series, []).append(row)
    parts = [
        f"**{group[0].upper()}{group[1:]}**\n\n{text}"
        for group, rows in found.items()
        if (text := _table(results, [series_of(each) for each in rows.values()]))
    ]
    return OPENING + "\n\n".join(parts) if parts else ""


def series_of(rows: Sequence[Row]) -> Series:
    """Rows as a series; where their titles differ in something else, in units of ``work``."""
    titles = [row.title.split(" ") for row in rows]
    if len({len(words) for words in titles}) == 1:
        columns = list(zip(*titles, strict=True))
        places = [place for place, words in enumerate(columns) if len(set(words)) > 1]
        if len(places) == 1 and (numbers := _numbers(columns[places[0]])):
            words = [*titles[0]]
            words[places[0]] = "N"
            return Series(" ".join(words), rows, numbers)
    return Series(f"{rows[0].title} …, N: work", rows, [row.work for row in rows])


def _numbers(words: Sequence[str]) -> list[float]:
    plain = [word.replace(",", "") for word in words]
    return [float(word) for word in plain] if all(word.isdecimal() for word in plain) else []


def _table(results: Results, found: Sequence[Series]) -> str:
    order = [name for name in results.facts["contenders"] if name != LIMIT]
    texts = {series.title: _texts(results, series, order) for series in found}
    names = [name for name in order if any(name in each for each in texts.values())]
    lines = [
        [title, *(each.get(name, "–") for name in names)] for title, each in texts.items() if each
    ]
    return table(["", *names], lines) if lines else ""


def _texts(results: Results, series: Series, names: Sequence[str]) -> Mapping[str, str]:
    """Words for each contender that has three medians or more."""
    found = {}
    for name in names:
        points = [
            (number, summary.median)
            for row, number in zip(series.rows, series.numbers, strict=True)
            if (summary := results.summary(row.key, name)) is not None
        ]
        if text := words_of(points, series.rows[0].unit):
            found[name] = text
    return found


def words_of(points: Sequence[tuple[float, float]], unit: Unit) -> str:
    """``77.5 ms + 24.3 µs × N``, and an exponent where it means something; "" for few points."""
    found = growth(points)
    if found is None:
        return ""
    numbers = [number for number, _ in points]
    rough = "~ " if found.missed > ROUGH else ""
    if found.each * (max(numbers) - min(numbers)) < FLAT * found.fixed:
        return f"{rough}{amount(found.fixed, unit)}, flat"
    text = f"{amount(found.each, unit)} × N"
    smallest = found.fixed + found.each * min(numbers)
    if found.fixed > NOTHING * smallest:
        text = f"{amount(found.fixed, unit)} + {text}"
    if found.fixed < FIXED * smallest and (power := slope(points)):
        text += f", exponent {power.exponent:.2f}"
    return rough + text
