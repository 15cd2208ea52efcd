"""What changed since an earlier run: row by row, and whether it is more than noise."""

from __future__ import annotations

from typing import NamedTuple

from tools.bench.headlines import OURS
from tools.bench.results import Results, Row
from tools.bench.stats import Summary, differs
from tools.bench.text import ratio, spread, table


class Change(NamedTuple):
    """One row in both runs; ``verdict`` is "faster", "slower" or the like, or "" for noise."""

    row: Row
    contender: str
    old: Summary
    new: Summary
    verdict: str


def changes(old: Results, new: Results, contender: str = OURS) -> list[Change]:
    """Rows that both runs have measured for ``contender`` (and its states, as in NBD)."""
    found = []
    for key, row in new.rows.items():
        for name in new.cells[key]:
            before, after = old.summary(key, name), new.summary(key, name)
            if name.startswith(contender) and before and after:
                found.append(Change(row, name, before, after, _verdict(row, before, after)))
    return found


def page(old: Results, new: Results) -> str:
    """A Markdown table of all changes, with the peers' drift as a measure of the machine's."""
    lines = [
        (
            _title(change),
            spread(change.old, change.row.unit),
            spread(change.new, change.row.unit),
            ratio(change.new.median / change.old.median) if change.old.median else "–",
            change.verdict or "(noise)",
        )
        for change in changes(old, new)
    ]
    head = ("", f"{old.facts['commit']}", f"{new.facts['commit']}", "new of old", "")
    return table(head, lines) + "\n\n" + _drift(old, new)


def _title(change: Change) -> str:
    if change.contender == OURS:
        return change.row.title
    return f"{change.row.title}, {change.contender}"


def _verdict(row: Row, old: Summary, new: Summary) -> str:
    if not differs(old, new):
        return ""
    better = (new.median > old.median) == row.more_is_better
    return "better" if better else "worse"


def _drift(old: Results, new: Results) -> str:
    """Peers did not change: how far they moved is how far the machine did."""
    ratios = sorted(
        new_summary.median / old_summary.median
        for key, row in new.rows.items()
        if row.unit == "s"
        for name in new.cells[key]
        if not name.startswith(OURS)
        if (new_summary := new.summary(key, name)) and (old_summary := old.summary(key, name))
        if old_summary.median
    )
    if not ratios:
        return "No peer was measured in both runs."
    middle = ratio(ratios[len(ratios) // 2])
    return f"Times of the peers, new of old: {middle} in the median of {len(ratios)} rows."
