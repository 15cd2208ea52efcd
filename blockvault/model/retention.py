"""What to keep: rules over the snapshots of one line of history, as borg and restic know them.

    last N                     the newest N
    hourly … yearly N          of the last N hours, days, … with a snapshot, the newest one each,
                               and those of the same microsecond
    within TIME                all that are at most so much older than the newest
    tags PATTERN...            those with such a tag; without this rule any tag keeps its snapshot
    events TIME                how long every write stays reachable; snapshots in that time stay too

A snapshot stays if any rule wants it.  Without a rule of the first three kinds all snapshots stay.
Times count back from the newest snapshot, or for ``events`` from the newest event; but from the
clock where that is behind them.  So nothing is thrown away by a clock that runs ahead, nor by one
that ran ahead when something was recorded; but by one that did both, and still does, it may be.
What was recorded after that has one and the same time until the clock gets there: nobody can tell
how long it was between two of those, and all of them stay where one does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, tzinfo
from fnmatch import fnmatchcase
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import Any, Final, NamedTuple

from blockvault.errors import BadRequest, Unsupported

SECOND: Final = 1_000_000
EVENTS_WINDOW: Final = 48 * 3600 * SECOND
"""How long every write stays reachable where no rule says otherwise."""

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}

_PERIODS: Final[dict[str, Callable[[datetime], tuple[int, ...]]]] = {
    "hourly": lambda at: (at.year, at.month, at.day, at.hour),
    "daily": lambda at: (at.year, at.month, at.day),
    "weekly": lambda at: tuple(at.isocalendar())[:2],
    "monthly": lambda at: (at.year, at.month),
    "yearly": lambda at: (at.year,),
}


class Candidate(NamedTuple):
    """A snapshot that a policy decides on."""

    id: bytes
    time_us: int
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Rules; times in microseconds.  ``tags`` None: every tag keeps."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: int = 0
    tags: tuple[str, ...] | None = None
    events: int = EVENTS_WINDOW

    @classmethod
    def from_rules(cls, rules: Iterable[Any]) -> Policy:
        """The policy of a PolicySet event; ``Unsupported`` for a rule of a later program."""
        found = {str(name): value for name, value in rules}
        unknown = found.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise Unsupported(f"a policy has rules that this program does not know: {unknown}")
        return cls(**found)

    def rules(self) -> tuple[tuple[str, int | tuple[str, ...]], ...]:
        """The form in which events hold it; ``events`` is always there, so it is never empty."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return tuple(
            (name, value)
            for name, value in sorted(values.items())
            if value or name == "events" or (name == "tags" and value is not None)
        )

    @property
    def thins(self) -> bool:
        """Whether any rule chooses among snapshots."""
        return any((self.last, self.within, *(getattr(self, name) for name in _PERIODS)))

    def keeps_tag(self, name: str) -> bool:
        """Whether a tag of this name keeps its snapshot."""
        return self.tags is None or any(fnmatchcase(name, pattern) for pattern in self.tags)


def kept(
    policy: Policy, candidates: Iterable[Candidate], now_us: int, zone: tzinfo | None = None
) -> dict[bytes, list[str]]:
    """Which snapshots stay and by which rules.  Hours and days are those of ``zone``, or local."""
    newest_first = sorted(candidates, key=lambda each: (each.time_us, each.seq), reverse=True)
    reasons: dict[bytes, list[str]] = {}
    if not policy.thins:
        return {each.id: ["no rule for snapshots"] for each in newest_first}
    for name, chosen in _chosen(policy, newest_first, now_us, zone):
        for each in chosen:
            reasons.setdefault(each.id, []).append(name)
    return reasons


def _chosen(
    policy: Policy, newest_first: Sequence[Candidate], now_us: int, zone: tzinfo | None
) -> Iterable[tuple[str, Iterable[Candidate]]]:
    yield "last", newest_first[: policy.last]
    if policy.within and newest_first:
        since = min(newest_first[0].time_us, now_us) - policy.within
        yield "within", [each for each in newest_first if each.time_us >= since]
    by_time = attrgetter("time_us")
    moments = [(time_us, list(same)) for time_us, same in groupby(newest_first, by_time)]
    for name, period in _PERIODS.items():
        newest = islice(_newest_of_each(moments, period, zone), getattr(policy, name))
        yield name, chain.from_iterable(newest)


def _newest_of_each(
    moments: Iterable[tuple[int, list[Candidate]]],
    period: Callable[[datetime], tuple[int, ...]],
    zone: tzinfo | None,
) -> Iterable[list[Candidate]]:
    before: tuple[int, ...] | None = None
    for time_us, same in moments:
        at = period(datetime.fromtimestamp(time_us // SECOND, UTC).astimezone(zone))
        if at != before:
            yield same
        before = at


def parse_duration(text: str) -> int:
    """``48h``, ``30d``, ``1d12h`` in microseconds; units s m h d w y, 0 needs none."""
    parts = re.findall(r"(\d+)([smhdwy])", text)
    if text.strip() == "0":
        return 0
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise BadRequest(f"{text!r} is not a time such as 90m, 48h, 30d, 8w or 2y")
    return sum(int(number) * _UNITS[unit] for number, unit in parts) * SECOND


def format_duration(time_us: int) -> str:
    """The shortest form that ``parse_duration`` takes."""
    rest = time_us // SECOND
    found = ""
    for unit in ("y", "w", "d", "h", "m", "s"):
        count, rest = divmod(rest, _UNITS[unit])
        if unit in "yw" and rest:
            rest += count * _UNITS[unit]
        elif count:
            found += f"{count}{unit}"
    return found or "0"
