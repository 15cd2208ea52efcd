"""Results as the page states them: what was recorded, read by the rules of today.

The results file keeps what was measured.  What a figure means may be understood better later; it
is put right here, for old results and new ones alike.
"""

from __future__ import annotations

import dataclasses

from tools.bench.peers.base import Archive
from tools.bench.peers.nbd import PLAIN, VaultServer
from tools.bench.peers.yardsticks import NbdkitMemory, QemuNbdRaw
from tools.bench.registry import ARCHIVES, SERVERS
from tools.bench.results import LIMIT, Cell, Results, Row, Sample

FSYNC = Row("limit/overwrite", "limits", "One 4 KiB overwrite made durable")
OVERWRITE = "one 4 KiB overwrite made durable"
"""What that is in the words of a limit."""
APPEND = "limit/fsync"
"""What was measured before that: an append, which some disks take longer for."""
FLUSHED = {"nbd/fsync-1": 1, "nbd/fsync-32": 32}
"""Rows that wait for the disk, and how many requests each flush is for."""
LATENCY = "nbd-latency/"
FLUSHES = "-flushes"
"""How the keys of latencies end that are those of flushes."""
YARDSTICKS = (NbdkitMemory.name, QemuNbdRaw.name)
SOONEST = "the sooner of nbdkit answering from memory and qemu-nbd with a raw file"
OURS = tuple(kind.name for kind in SERVERS if issubclass(kind, VaultServer))
OTHER_WORK = (
    (" before all those writes", OURS, "it was asked for its newest state"),
    (" after all those writes", PLAIN, "it had not written for a minute before"),
)
"""Ends of titles of rows in which some were asked for other work; who did what the title says; and
what is so of the rest.
"""
UNDISTURBED = "the same without "
"""How the words of limits began that were none: what one contender did undisturbed."""
DIFF = "diff"
COMPARE = "qemu-img compare"
COMPARED = f"it was measured with {COMPARE}, which stops at the first difference"
DURABLE = "; or one durable write a flush, which nbdkit leaves out"


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
    if FSYNC.key in results.cells:
        made.rows.pop(APPEND, None)
    for key in FLUSHED:
        made.rows.pop(LATENCY + key.removeprefix("nbd/"), None)  # without the flushes
    for row in list(made.rows.values()):
        if row.limit.startswith(UNDISTURBED):
            _drop_limit(made, row)
        if row.key.startswith(LATENCY):
            limit = _limit_by_overwrites if row.key.endswith(FLUSHES) else _limit_by_yardsticks
            limit(made, row)
        _drop_other_work(made, row)
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


def _limit_by_yardsticks(made: Results, row: Row) -> None:
    """Requests are answered soonest by who keeps no history."""
    found = {}
    for name in YARDSTICKS:
        if summary := made.summary(row.key, name):
            found[summary.median] = made.cells[row.key][name]
    if found:
        made.cells[row.key] = made.cells[row.key] | {LIMIT: found[min(found)]}
        made.rows[row.key] = dataclasses.replace(row, limit=SOONEST)


def _limit_by_overwrites(made: Results, row: Row) -> None:
    """A flush is answered when at least one write is durable."""
    durable = made.cells.get(FSYNC.key, {}).get(LIMIT)
    if durable is not None and _same_machine(made, row):
        made.cells[row.key] = made.cells[row.key] | {LIMIT: durable}
        made.rows[row.key] = dataclasses.replace(row, limit=OVERWRITE)


def _drop_limit(made: Results, row: Row) -> None:
    """What one of the contenders does is no limit to the others."""
    cells = made.cells[row.key]
    made.cells[row.key] = {name: cell for name, cell in cells.items() if name != LIMIT}
    made.rows[row.key] = dataclasses.replace(row, limit="")


def _drop_other_work(made: Results, row: Row) -> None:
    for end, names, why in OTHER_WORK:
        if row.title.endswith(end):
            made.cells[row.key] = {
                name: cell if name in (*names, LIMIT) else Cell("not run", why)
                for name, cell in made.cells[row.key].items()
            }


def _limit_by_flushes(made: Results, row: Row, requests: int) -> None:
    """The protocol's rate is no limit of what waits for a disk: the lower of both is."""
    bare, durable = made.summary(row.key, LIMIT), made.cells.get(_durable(made), {}).get(LIMIT)
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
    """Whether a row and the durable write were measured on one machine, and so on one disk."""
    keys = row.key, _durable(results)
    return len({each.machine for key in keys for each in results.origin(key)}) == 1


def _durable(results: Results) -> str:
    """The row that tells how soon a write is durable."""
    return FSYNC.key if FSYNC.key in results.cells else APPEND
