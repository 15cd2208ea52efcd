"""How differences between two states are shown, in text and in JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from blockvault.cli import output

if TYPE_CHECKING:
    from blockvault.ops.compare import VolumeDiff


def real(differences: Iterable[VolumeDiff]) -> list[VolumeDiff]:
    """Those volumes that differ, in content or in size."""
    return [item for item in differences if item.extents or item.size_a != item.size_b]


def stat(differences: Iterable[VolumeDiff]) -> list[str]:
    """One line for each volume: name, changed bytes, number of ranges, what became of its size."""
    rows = [
        (
            output.clean(item.name),
            output.size(item.changed),
            output.plural(len(item.extents), "range"),
            _sizes(item),
        )
        for item in differences
    ]
    return output.columns(rows, right=frozenset({1, 2}))


def _sizes(item: VolumeDiff) -> str:
    if item.size_a is None:
        return f"new, {output.size(item.size_b or 0)}"
    if item.size_b is None:
        return f"gone, was {output.size(item.size_a)}"
    if item.size_a != item.size_b:
        return f"size {item.size_a:,} -> {item.size_b:,} bytes"
    return f"of {output.size(item.size_b)}"


def summary_json(item: VolumeDiff) -> dict[str, Any]:
    """A difference without its ranges: ``volume size_a size_b changed ranges``."""
    return {
        "volume": item.name,
        "size_a": item.size_a,
        "size_b": item.size_b,
        "changed": item.changed,
        "ranges": len(item.extents),
    }
