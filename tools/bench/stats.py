"""The few numbers that a row is summed up in, and the slope of cost against work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """Median and spread (quartiles) of one cell's samples, in the row's unit."""

    median: float
    low: float
    high: float
    runs: int


def summarize(values: Sequence[float]) -> Summary:
    """Median and quartiles; with fewer than four values the spread is the whole range."""
    if not values:
        raise ValueError("no values to summarize")
    if len(values) < 4:
        low, high = min(values), max(values)
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(statistics.median(values), low, high, len(values))


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


def differs(old: Summary, new: Summary, tolerance: float = 0.03) -> bool:
    """Whether a change is more than noise: the quartiles do not overlap and the medians part."""
    apart = new.low > old.high or new.high < old.low
    return apart and abs(new.median - old.median) > tolerance * old.median
