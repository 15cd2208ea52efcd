"""How numbers look in tables: three digits, a unit that fits, the spread where it is wide."""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.results import Unit
from tools.bench.stats import Summary

_SIZES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
_TIMES = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
_WIDE = 0.05  # spread, as a part of the median, from which on it is shown


def amount(value: float, unit: Unit) -> str:
    """A value with its unit: ``1.23 s``, ``45.6 ms``, ``470 MB``, ``46,200``."""
    if unit in ("IOPS", ""):
        return f"{value:,.0f}"
    steps = _SIZES if unit == "B" else _TIMES if unit == "s" else ((unit, 1.0),)
    for name, size in steps:
        if abs(value) >= size:
            return f"{digits(value / size)} {name}"
    name, size = steps[-1]
    return f"{digits(value / size)} {name}"


def digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def spread(summary: Summary, unit: Unit) -> str:
    """The median, and as ``±`` half of the middle half where that is more than a few percent."""
    half = (summary.high - summary.low) / 2
    text = amount(summary.median, unit)
    if summary.median and half / abs(summary.median) > _WIDE:
        text += f" ±{half / abs(summary.median):.0%}"
    return text


def ratio(value: float) -> str:
    """``0.62 ×``"""
    return f"{digits(value)} ×"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))
