"""A vault's figures for monitoring, in the text format of Prometheus.

Only what can be told at once, whatever the size of the vault: sizes of tables, numbers of names,
ages of the newest events.  What takes a walk over all trees is left to ``stats``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from blockvault.encoding import unpack
from blockvault.model import projections
from blockvault.ops import base
from blockvault.store import tables

if TYPE_CHECKING:
    from blockvault.vault import Vault


class Metric(NamedTuple):
    """One figure: its name without the prefix, what it means, its kind, and labels → value."""

    name: str
    help: str
    kind: str
    values: tuple[tuple[Mapping[str, str], float], ...]


def of_vault(vault: Vault) -> Iterator[Metric]:
    """Figures of what is stored."""
    with vault.read() as reader:
        sizes = reader.table_bytes()
        last = reader.last()
        branches = [row for _, row in projections.branches(reader)]
        snapshots = sum(1 for _ in projections.snapshots(reader))
        holds = sum(1 for _ in projections.holds(reader))
        condemning = reader.condemning
        ages = reader.get(tables.META, b"ages")
    newest = base.find(vault)
    file_bytes = sum(path.stat().st_blocks * 512 for path in vault.path.iterdir() if path.is_file())
    by_table = tuple(({"table": name}, float(size)) for name, size in sorted(sizes.items()))
    yield _gauge("file_bytes", "Bytes that the vault takes on the disk.", file_bytes)
    yield Metric("table_bytes", "Bytes of each table, without free pages.", "gauge", by_table)
    yield _gauge("snapshots", "Snapshots that are kept.", snapshots)
    yield _gauge("branches", "Branches that are not deleted.", sum(not b.deleted for b in branches))
    yield _gauge("deleted_branches", "Deleted ones, restorable.", sum(b.deleted for b in branches))
    yield _gauge("holds", "Snapshots that are held by hand.", holds)
    yield Metric("events_total", "Events ever logged.", "counter", (({}, float(last.seq)),))
    yield _gauge("last_event_seconds", "When the last record was logged.", last.time_us / 1e6)
    pruned = newest.record.time_us / 1e6 if newest else 0
    yield _gauge("last_prune_seconds", "When prune last forgot anything; 0: never.", pruned)
    collected = unpack(ages, "ages")[-1][0] / 1e6 if ages else 0
    yield _gauge("last_new_frame_gc_seconds", "When gc last met new frames; 0: never.", collected)
    yield _gauge("gc_interrupted", "1 if a collection is unfinished.", int(condemning))


def of_servers(answers: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    """Figures of running servers, from their answers to ``status``."""
    exports = [
        ({"pid": str(answer["pid"]), "export": name}, export)
        for answer in answers
        for name, export in answer["exports"].items()
    ]
    for name, text in (
        ("connections", "Clients connected now."),
        ("errors", "Requests answered with an error."),
        ("bytes_read", "Bytes read by clients."),
        ("bytes_written", "Bytes written by clients."),
    ):
        kind = "gauge" if name == "connections" else "counter"
        suffix = "" if kind == "gauge" else "_total"
        values = tuple((labels, float(export[name])) for labels, export in exports)
        yield Metric(f"nbd_{name}{suffix}", text, kind, values)
    requests = tuple(
        (labels | {"kind": kind}, float(count))
        for labels, export in exports
        for kind, count in export["requests"].items()
    )
    yield Metric("nbd_requests_total", "Requests by kind.", "counter", requests)


def render(metrics: Iterable[Metric]) -> str:
    """The exposition format, version 0.0.4."""
    lines = []
    for name, text, kind, values in metrics:
        full = f"blockvault_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
        lines += [f"{full}{_labels(labels)} {value:.17g}" for labels, value in values]
    return "\n".join(lines) + "\n"


def _gauge(name: str, text: str, value: float) -> Metric:
    return Metric(name, text, "gauge", (({}, float(value)),))


def _labels(labels: Mapping[str, str]) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
