"""Binary search for the first bad point of a line, where some points cannot be judged.

    good ─┬─ candidates, ascending ─┬─ bad          points are numbers; only their order matters
          └──── the next to judge ──┘

A search is what is known: the last good point, the first bad one, and which between them had to be
skipped.  Candidates are given anew each time, so one search goes over to finer points as soon as
the coarse ones are used up.  It supposes that what is bad stays bad up to the bad end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from blockvault.errors import BadRequest


class Verdict(StrEnum):
    """What was found out about a point."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Search:
    """The answer lies in ``(good, bad]``; ``skipped`` points were tried and tell nothing."""

    good: int
    bad: int
    skipped: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.good >= self.bad:
            raise BadRequest(f"the good state, #{self.good}, is not before the bad, #{self.bad}")

    def marked(self, point: int, verdict: Verdict) -> Search:
        """What is known after one more verdict; ``BadRequest`` if it contradicts earlier ones."""
        if verdict is Verdict.SKIP:
            return replace(self, skipped=self.skipped | {point})
        if verdict is Verdict.GOOD:
            if point >= self.bad:
                raise BadRequest(f"#{point} cannot be good: #{self.bad} is bad")
            return replace(self, good=max(self.good, point))
        if point <= self.good:
            raise BadRequest(f"#{point} cannot be bad: #{self.good} is good")
        return replace(self, bad=min(self.bad, point))

    def within(self, points: Iterable[int]) -> list[int]:
        """Those of ``points`` that lie strictly between the ends, ascending, each once."""
        return sorted({point for point in points if self.good < point < self.bad})

    def untried(self, points: Iterable[int]) -> list[int]:
        """Those that may still be judged."""
        return [point for point in self.within(points) if point not in self.skipped]

    def next(self, points: Iterable[int]) -> int | None:
        """The point to judge: the middle one; None if all that are left were skipped.

        Points that cannot be judged come in clusters.  So after the first skip the place is not the
        middle but 1/4 of the way, then 3/4, 1/8, 5/8, ...: away from the cluster, wherever it is.
        """
        left = self.untried(points)
        if not left:
            return None
        skips = len(self.within(self.skipped))
        return left[int(len(left) * _spread(skips + 1))]


def steps(count: int) -> int:
    """How many verdicts ``count`` candidates take at most, if none is skipped."""
    return count.bit_length()


def _spread(number: int) -> float:
    """The van der Corput sequence of base 2: 1/2, 1/4, 3/4, 1/8, 5/8, ..."""
    place, half = 0.0, 0.5
    while number:
        number, bit = divmod(number, 2)
        place += bit * half
        half /= 2
    return place
