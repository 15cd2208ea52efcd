"""The few numbers that a row is summed up in, and how cost grows with work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

FEW = 3
"""Of fewer samples it is said that they are few, and nothing is told from noise by them."""
MANY = 8
"""From as many on, the quartiles tell; those of fewer part too often by chance."""


class Summary(NamedTuple):
    """Median, spread (quartiles) and range of one cell's samples, in the row's unit."""

    median: float
    low: float
    high: float
    runs: int
    least: float
    most: float


def summarize(values: Sequence[float]) -> Summary:
    """Median and quartiles; with fewer than four values the spread is the whole range."""
    if not values:
        raise ValueError("no values to summarize")
    if len(values) < 4:
        low, high = min(values), max(values)
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    middle = statistics.median(values)
    return Summary(middle, low, high, len(values), min(values), max(values))


class Slope(NamedTuple):
    """``cost = factor * work ** exponent``; 0 is flat, 1 proportional.  ``fit`` is R squared."""

    exponent: float
    factor: float
    fit: float


def slope(points: Sequence[tuple[float, float]]) -> Slope | None:
    """Least squares through the logarithms of (work, cost); None with fewer than three points."""
    logs = [(math.log(work), math.log(cost)) for work, cost in points if work > 0 and cost > 0]
    if len(logs) < 3 or len({x for x, _ in logs}) < 2:
        return None
    exponent, intercept = statistics.linear_regression(*zip(*logs, strict=True))
    mean = statistics.fmean(y for _, y in logs)
    total = sum((y - mean) ** 2 for _, y in logs)
    missed = sum((y - intercept - exponent * x) ** 2 for x, y in logs)
    return Slope(exponent, math.exp(intercept), 1 - missed / total if total else 1.0)


class Growth(NamedTuple):
    """``cost = fixed + each * work``; ``missed`` is the biggest part of a cost that it misses."""

    fixed: float
    each: float
    missed: float


def growth(points: Sequence[tuple[float, float]]) -> Growth | None:
    """Least squares of the parts of the costs by which they are missed, nothing negative.

    Parts, since works differ by powers of ten: else the biggest cost would be the only one to
    count.  None with fewer than three points, as there is with ``slope``.
    """
    known = [(work, cost) for work, cost in points if cost > 0]
    if len(known) < 3 or len({work for work, _ in known}) < 2:
        return None
    fixed, each = _two_parts(known)
    missed = max(abs(fixed + each * work - cost) / cost for work, cost in known)
    return Growth(fixed, each, missed)


def _two_parts(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    ones = sum(1 / cost**2 for _, cost in points)
    works = sum(work / cost**2 for work, cost in points)
    squares = sum((work / cost) ** 2 for work, cost in points)
    costs = sum(1 / cost for _, cost in points)
    both = sum(work / cost for work, cost in points)
    each = (ones * both - works * costs) / (ones * squares - works**2)
    fixed = (costs - each * works) / ones
    if each < 0:
        return costs / ones, 0.0
    return (fixed, each) if fixed >= 0 else (0.0, both / squares)


def differs(old: Summary, new: Summary, tolerance: float = 0.03) -> bool:
    """Whether a change is more than noise: the samples lie apart, and the medians too.

    Of many samples the middle halves have to; of fewer all.  With five on each side the quartiles
    of one and the same distribution part in every fifth case, its whole ranges in less than one of
    a hundred.
    """
    fewest = min(old.runs, new.runs)
    if fewest < MANY:
        apart = new.least > old.most or new.most < old.least
    else:
        apart = new.low > old.high or new.high < old.low
    return fewest >= FEW and apart and abs(new.median - old.median) > tolerance * old.median
