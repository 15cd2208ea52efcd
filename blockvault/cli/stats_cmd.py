"""``blockvault stats``: how much space the vault takes, and for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import output
from blockvault.cli.common import command, with_vault
from blockvault.cli.progress import progress

if TYPE_CHECKING:
    from blockvault.ops.stats import Freeable, Stats, Usage
    from blockvault.vault import Vault

_DAYS = 14

_TOTALS = {
    "logical": "bytes of all volumes of all snapshots and branches, holes included",
    "referenced": "the same without holes",
    "unique": "bytes of different blocks among them",
    "stored": "those blocks as they are stored: compressed, in frames",
    "file_bytes": "what the vault takes on the disk",
    "log_bytes": "of that, the event log",
    "index_bytes": "of that, the index of objects",
    "ratio": "referenced / file_bytes",
    "dedup": "referenced / unique",
    "compression": "unique / stored",
}


@command(
    "stats",
    examples={
        "blockvault stats": "Totals, then each branch and each snapshot.",
        "blockvault stats --json | jq .ratio": "How many bytes a stored byte stands for.",
    },
    shape={
        **_TOTALS,
        "prune": "bytes that a prune by the stored policies would let gc free",
        "gc": "bytes that gc could free already",
        "growth[].day": "a day, local time, on which new blocks came",
        "growth[].bytes": "bytes of the blocks that were new then and are still held",
        "branches[].name": "a branch",
        "branches[].logical": "bytes of its volumes, holes included",
        "branches[].shared": "bytes of its blocks that others use too",
        "branches[].own": "bytes of its blocks that nothing else uses",
        "snapshots[].name": "a snapshot",
        "snapshots[].logical": "bytes of its volumes, holes included",
        "snapshots[].shared": "bytes of its blocks that others use too",
        "snapshots[].own": "bytes that deleting only this snapshot would free, before compression",
    },
)
@with_vault
def run(vault: Vault, as_json: bool) -> None:
    """Show how much space the vault takes, and for what.

    Shared and own bytes count blocks before compression.
    """
    from blockvault.ops.stats import collect, freeable

    stats = collect(vault)
    with progress("Marking", quiet=as_json) as report:
        freed = freeable(vault, progress=report)
    if as_json:
        output.write_json(_json(stats) | freed._asdict())
        return
    for line in _totals(stats, freed):
        output.write(line)
    _write_growth(stats)
    for title, usages in (("branch", stats.branches), ("snapshot", stats.snapshots)):
        if usages:
            output.write()
            _write_usages(title, usages)


def _totals(stats: Stats, freed: Freeable) -> list[str]:
    rows = [
        ("logical", output.size(stats.logical), "all volumes of all versions"),
        ("referenced", output.size(stats.referenced), "without holes"),
        ("unique", output.size(stats.unique), f"different blocks, {stats.dedup:.1f} times less"),
        ("stored", output.size(stats.stored), f"compressed, {stats.compression:.1f} times less"),
        ("on disk", output.size(stats.file_bytes), f"{stats.ratio:.1f} times less than referenced"),
        ("  log", output.size(stats.log_bytes), f"{stats.log_bytes / stats.file_bytes:.1%} of it"),
        ("  index", output.size(stats.index_bytes), ""),
        ("  prune", output.size(freed.prune), "would be freed by prune, then gc"),
        ("  gc", output.size(freed.gc), "would be freed by gc now"),
    ]
    return output.columns(rows, right=frozenset({1}))


def _write_growth(stats: Stats) -> None:
    """What came on each of the last days that brought anything."""
    if not stats.growth:
        return
    output.write()
    head = (click.style("day", bold=True), click.style("grew by", bold=True))
    rows = [(day, output.size(count)) for day, count in stats.growth[-_DAYS:]]
    for line in output.columns([head, *rows], right=frozenset({1})):
        output.write(line)


def _write_usages(title: str, usages: Sequence[Usage]) -> None:
    head = tuple(click.style(cell, bold=True) for cell in (title, "logical", "shared", "own"))
    rows = [
        (usage.name, *map(output.size, (usage.logical, usage.shared, usage.own)))
        for usage in usages
    ]
    for line in output.columns([head, *rows], right=frozenset({1, 2, 3})):
        output.write(line)


def _json(stats: Stats) -> dict[str, Any]:
    fields = ("name", "logical", "shared", "own")
    return output.pick(stats, _TOTALS) | {
        "growth": [each._asdict() for each in stats.growth],
        "branches": [output.pick(usage, fields) for usage in stats.branches],
        "snapshots": [output.pick(usage, fields) for usage in stats.snapshots],
    }
