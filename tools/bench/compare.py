"""What changed since an earlier run: row by row, and whether it is more than noise.

Only like is held against like.  A row that was about other work in the earlier run, by its title,
its mode, its images, its sizes or its commands, is shown with the reason and counts nowhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tools.bench.results import LIMIT, Results, Row
from tools.bench.scope import IMAGES, UNKNOWN, Scope
from tools.bench.sections import OURS
from tools.bench.stats import FEW, Summary, differs
from tools.bench.text import amount, ratio, spread, table

NUMBERED = re.compile(r"\b([a-z]+)\d+([a-z]?)(?:-\d+)?\b")
"""Names that scenarios give to states and branches: ``s1a``, ``m100-0``."""
SETTINGS = re.compile(r"^(?:\w+=(?:'[^']*'|[^\s'])* )+")


class Change(NamedTuple):
    """One row in both runs; ``verdict`` is "better", "worse", or "" for what may be noise.
    ``apart`` says why the two cannot be compared, where that is so.
    """

    row: Row
    contender: str
    old: Summary
    new: Summary
    verdict: str
    apart: str = ""


def changes(old: Results, new: Results) -> list[Change]:
    """Every figure that both runs have, of blockvault (in all its states, as in NBD) and peers."""
    found = []
    for key, row in new.rows.items():
        for name in new.cells[key]:
            before, after = old.summary(key, name), new.summary(key, name)
            if before and after:
                apart = _apart(old, new, key, name)
                verdict = "" if apart else _verdict(row, before, after)
                found.append(Change(row, name, before, after, verdict, apart))
    return found


def page(old: Results, new: Results) -> str:
    """What is compared with what, a Markdown table of blockvault's changes, and the peers' drift
    as a measure of the machine's.
    """
    found = changes(old, new)
    titles = Counter(row.title for row in new.rows.values())
    lines = [_line(change, titles) for change in found if _is_ours(change)]
    head = ("", "before", "now", "now of before", "")
    return "\n\n".join([_opening(old, new, found), table(head, lines), _drift(found)])


def _is_ours(change: Change) -> bool:
    return change.contender.startswith(OURS)


def _line(change: Change, titles: Mapping[str, int]) -> tuple[str, ...]:
    unit = change.row.unit
    figures = _title(change, titles), spread(change.old, unit), spread(change.new, unit)
    if change.apart:
        return (*figures, "–", f"not comparable: {change.apart}")
    moved = ratio(change.new.median / change.old.median) if change.old.median else "–"
    few = min(change.old.runs, change.new.runs) < FEW
    return (*figures, moved, change.verdict or ("(few runs)" if few else "(noise)"))


def _title(change: Change, titles: Mapping[str, int]) -> str:
    """The row's, with its group where others are called the same; and the state if not plain."""
    row = change.row
    title = f"{row.group}: {row.title}" if titles[row.title] > 1 else row.title
    return title if change.contender == OURS else f"{title}, {change.contender}"


def _verdict(row: Row, old: Summary, new: Summary) -> str:
    if not differs(old, new):
        return ""
    better = (new.median > old.median) == row.more_is_better
    return "better" if better else "worse"


def _opening(old: Results, new: Results, found: Sequence[Change]) -> str:
    """The commits that the rows come from, and the machines where those differ."""
    before, now = (_commits(results, found) for results in (old, new))
    text = f"Before: commit {before}. Now: commit {now}."
    if machines := list(_machines(old, new, found)):
        text += (
            f"\nNot of one machine: {'; '.join(machines)}. What follows compares machines as much "
            "as programs; the peers' times, below, say how far."
        )
    return text


def _commits(results: Results, found: Sequence[Change]) -> str:
    keys = {change.row.key for change in found}
    return ", ".join(sorted({each.commit for key in keys for each in results.origin(key)})) or "–"


def _machines(old: Results, new: Results, found: Sequence[Change]) -> Iterator[str]:
    """What differs between the machines of any row; and the memory, as far as that is known."""
    for name in ("processor", "cores", "file_system"):
        then, now = (_machine(results, found, name) for results in (old, new))
        if any(then[key] != now[key] for key in then):
            what = "" if name == "processor" else f"{name.replace('_', ' ')} "
            yield f"{what}{_names(then)} before, {_names(now)} now"
    before, after = (amount(results.facts["memory"], "B") for results in (old, new))
    if before != after:
        yield f"memory {before} before, {after} now"


def _machine(results: Results, found: Sequence[Change], name: str) -> dict[str, set[str]]:
    keys = (change.row.key for change in found if not change.apart)
    return {key: {getattr(each, name) for each in results.origin(key)} for key in keys}


def _names(found: dict[str, set[str]]) -> str:
    return " and ".join(sorted(set().union(*found.values())))


def _apart(old: Results, new: Results, key: str, name: str) -> str:
    """Why a figure cannot be compared; what comes from the very same runs always can."""
    if old.origin(key) == new.origin(key):
        return ""
    reasons = [*_differences(old.scope(key), new.scope(key))]
    if old.rows[key].title != new.rows[key].title:
        reasons.append(f"asked before: {old.rows[key].title}")
    then, now = (_spelled(results, key, name) for results in (old, new))
    if then and now and then != now:
        reasons.append("measured with other commands")
    return "; ".join(reasons)


def _spelled(results: Results, key: str, name: str) -> list[str]:
    """What was run, but for the numbers of names, which count the runs, and for the environment,
    which was not always shown.
    """
    commands = results.commands.get(key, {}).get(name, ())
    return [NUMBERED.sub(r"\1\2", SETTINGS.sub("", each)) for each in commands]


def _differences(old: Scope, new: Scope) -> Iterator[str]:
    """In words, why two rows are not about the same work."""
    if UNKNOWN in old or UNKNOWN in new:
        yield "it is not known of what size the work was"
    for name in (name for name in new if name in old and name != UNKNOWN):
        if old[name] == new[name]:
            continue
        then, now = (_words(name, scope[name]) for scope in (old, new))
        if then == now:
            then, now = "some", "others of that size"
        yield f"{name.replace('_', ' ')} {then} before, {now} now"


def _words(name: str, value: Any) -> str:
    if name == IMAGES:
        data, size = (sum(each[of] or 0 for each in value) for of in ("data", "size"))
        return f"{len(value)} of {amount(size, 'B')} with {amount(data, 'B')} of data"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "all"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _drift(found: Sequence[Change]) -> str:
    """Peers did not change: how far they moved is how far the machine did.  Limits may have: they
    are worked out in another way from time to time.
    """
    ratios = sorted(
        change.new.median / change.old.median
        for change in found
        if change.row.unit == "s" and not _is_ours(change) and change.contender != LIMIT
        if not change.apart and change.old.median
    )
    if not ratios:
        return "No peer was measured on the same work in both runs."
    middle = ratio(ratios[len(ratios) // 2])
    return f"Times of the peers, now of before: {middle} in the median of {len(ratios)} rows."
