"""Whether the limit of a row is one: who does better shows that the machine allows more."""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.results import LIMIT, Cell, Results, Row
from tools.bench.stats import Summary
from tools.bench.text import amount, digits

EVEN = 0.03  # medians that are closer than this are called even
BEATEN = "beaten"


def advantage(row: Row, one: Summary, other: Summary) -> float:
    """How many times better the median of ``one`` is; neither is zero."""
    ratio = one.median / other.median
    return ratio if row.more_is_better else 1 / ratio


def floor(results: Results, row: Row) -> Summary | None:
    """The best that was measured of the limit: what a machine allows it does not always do."""
    cell = results.cells.get(row.key, {}).get(LIMIT)
    found = best(row, cell) if cell else None
    if cell is None or not found:
        return None
    return Summary(found, found, found, len(cell.samples), found, found)


def best(row: Row, cell: Cell) -> float | None:
    """The best of a cell's samples; None unless something was measured."""
    if cell.summary() is None:
        return None
    values = [sample.value for sample in cell.samples]
    return max(values) if row.more_is_better else min(values)


def figure(results: Results, row: Row, name: str) -> Summary | None:
    """What is stated of a cell: of contenders the median, of the limit the best."""
    return floor(results, row) if name == LIMIT else results.summary(row.key, name)


def beaten_by(results: Results, row: Row) -> list[str]:
    """The contenders that are better than the limit.

    Yardsticks are none: they need not do what the limit is about, such as make a write durable.
    """
    limit = floor(results, row)
    if limit is None:
        return []
    found = []
    for name in results.cells[row.key]:
        summary = (
            None if name == LIMIT or _yardstick(results, name) else results.summary(row.key, name)
        )
        if summary is not None and summary.median and advantage(row, summary, limit) > 1 + EVEN:
            found.append(name)
    return found


def short(results: Results, row: Row, ours: str) -> str:
    """The limit in the first tables: how many times that ``ours`` takes, a * if others do not."""
    limit, summary = floor(results, row), results.summary(row.key, ours)
    if limit is None or summary is None or not summary.median:
        return "–"
    beaten = beaten_by(results, row)
    if ours in beaten:
        return BEATEN
    text = f"{amount(limit.median, row.unit)}, {digits(advantage(row, limit, summary))} ×"
    return text + (" *" if beaten else "")


def cell(results: Results, row: Row) -> str:
    """The limit in the table of its row."""
    limit = floor(results, row)
    if limit is None:
        return "–"
    return amount(limit.median, row.unit) + (f", {BEATEN}" if beaten_by(results, row) else "")


def notes(results: Results, rows: Sequence[Row]) -> list[str]:
    """What the limits of a table are, and by whom they are beaten in which rows."""
    found = [f"* limit: {text}" for text in dict.fromkeys(row.limit for row in rows if row.limit)]
    beaten: dict[str, list[str]] = {}
    for row in rows:
        if names := ", ".join(beaten_by(results, row)):
            beaten.setdefault(names, []).append(row.title)
    for names, titles in beaten.items():
        found.append(f"* limit, {BEATEN} by {names}, so that it is none: {some(titles)}")
    return found


def some(titles: Sequence[str]) -> str:
    """The first of some rows, and how many there are beside it."""
    return titles[0] + (f" and {len(titles) - 1} more" if len(titles) > 1 else "")


def _yardstick(results: Results, name: str) -> bool:
    return bool(results.facts["contenders"].get(name, {}).get("yardstick"))
