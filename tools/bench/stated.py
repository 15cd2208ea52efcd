"""Results as the page states them: what was recorded, read by the rules of today.

The results file keeps what was measured.  What a figure means may be understood better later; it
is put right here, for old results and new ones alike.
"""

from __future__ import annotations

import dataclasses

from tools.bench.peers.base import Archive
from tools.bench.registry import ARCHIVES
from tools.bench.results import LIMIT, Cell, Results, Row, Sample

FSYNC = Row("limit/fsync", "limits", "One 4 KiB append made durable")
FLUSHED = {"nbd/fsync-1": 1, "nbd/fsync-32": 32}
"""Rows that wait for the disk, and how many requests each flush is for."""
DIFF = "diff"
COMPARE = "qemu-img compare"
COMPARED = f"it was measured with {COMPARE}, which stops at the first difference"
DURABLE = "; or one durable append a flush, which nbdkit leaves out"


def stated(results: Results) -> Results:
    """A copy with the limits that hold, and without what is no answer to its row."""
    made = dataclasses.replace(
        results,
        rows=dict(results.rows),
        cells=dict(results.cells),
        commands=dict(results.commands),
    )
    for archive in ARCHIVES:
        _drop_what_is_no_diff(made, archive)
    for key, requests in FLUSHED.items():
        if key in results.rows:
            _limit_by_flushes(made, results.rows[key], requests)
    return made


def _drop_what_is_no_diff(made: Results, archive: type[Archive]) -> None:
    """Some were measured with commands that do not list the ranges that differ."""
    cell = made.cells.get(DIFF, {}).get(archive.name)
    commands = made.commands.get(DIFF, {})
    compared = any(COMPARE in each for each in commands.get(archive.name, ()))
    if cell is None or cell.state != "measured" or not (archive.no_diff or compared):
        return
    why = Cell("not offered", archive.no_diff) if archive.no_diff else Cell("not run", COMPARED)
    made.cells[DIFF] = made.cells[DIFF] | {archive.name: why}
    others = {name: words for name, words in commands.items() if name != archive.name}
    made.commands[DIFF] = others


def _limit_by_flushes(made: Results, row: Row, requests: int) -> None:
    """The protocol's rate is no limit of what waits for a disk: the lower of both is."""
    bare, durable = made.summary(row.key, LIMIT), made.cells.get(FSYNC.key, {}).get(LIMIT)
    cells = dict(made.cells[row.key])
    if durable is None or not _same_machine(made, row):
        cells.pop(LIMIT, None)
    else:
        slow = Cell(samples=[Sample(requests / each.value) for each in durable.samples])
        flushed = slow.summary()
        if bare is None or (flushed is not None and flushed.median < bare.median):
            cells[LIMIT] = slow
    made.cells[row.key] = cells
    if not row.limit.endswith(DURABLE):
        made.rows[row.key] = dataclasses.replace(row, limit=row.limit + DURABLE)


def _same_machine(results: Results, row: Row) -> bool:
    """Whether a row and the durable append were measured on one processor, and so on one disk."""
    processors = {each.processor for key in (row.key, FSYNC.key) for each in results.origin(key)}
    return len(processors) == 1
