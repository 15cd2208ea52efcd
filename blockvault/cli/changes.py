"""How differences between two states are shown, in text and in JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from blockvault.cli import output

if TYPE_CHECKING:
    from blockvault.model.snapshot import Snapshot
    from blockvault.ops.compare import VolumeDiff
    from blockvault.vault import Vault


def real(differences: Iterable[VolumeDiff]) -> list[VolumeDiff]:
    """Those volumes that differ, in content or in size."""
    return [item for item in differences if item.differs]


def stat(differences: Iterable[VolumeDiff]) -> list[str]:
    """One line for each volume: name, present size, and what became of it."""
    rows = [
        (item.name, output.size(item.size_b or item.size_a or 0), words(item))
        for item in differences
    ]
    return output.columns(rows, right=frozenset({1}))


def words(item: VolumeDiff) -> str:
    """What became of a volume, in a few words."""
    if not item.differs:
        return "unchanged"
    if item.size_b is None:
        return "gone"
    ranges = f"in {output.plural(len(item.extents), 'range')}"
    if item.size_a is None:
        return f"new, {output.size(item.changed)} {ranges}"
    text = f"{output.size(item.changed)} changed {ranges}"
    if item.size_a != item.size_b:
        return f"{text}, was {item.size_a:,} bytes, is {item.size_b:,}"
    return text


def since_parent(vault: Vault, snapshot: Snapshot, names: Collection[str]) -> list[str]:
    """A line for each of these volumes of a new snapshot: what it changed."""
    found = vault.diff(snapshot.parents[0].hex(), snapshot.id.hex()) if snapshot.parents else []
    became = {item.name: words(item) for item in found}
    rows = [
        (volume.name, output.size(volume.size), became.get(volume.name, "new"))
        for volume in snapshot.volumes
        if volume.name in names
    ]
    return output.columns(rows, right=frozenset({1}))


def summary_json(item: VolumeDiff) -> dict[str, Any]:
    """A difference without its ranges: ``volume size_a size_b changed ranges``."""
    return {
        "volume": item.name,
        "size_a": item.size_a,
        "size_b": item.size_b,
        "changed": item.changed,
        "ranges": len(item.extents),
    }
