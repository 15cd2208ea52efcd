"""Results as the page states them: what was recorded, read by the rules of today.

The results file keeps what was measured.  What a figure means may be understood better later; it
is put right here, for old results and new ones alike.
"""

from __future__ import annotations

import dataclasses
import re

from tools.bench import floors
from tools.bench.peers.base import Archive
from tools.bench.peers.nbd import PLAIN, VaultServer
from tools.bench.peers.yardsticks import NbdkitMemory, QemuNbdRaw
from tools.bench.registry import ARCHIVES, SERVERS
from tools.bench.results import LIMIT, Cell, Results, Row, Sample
from tools.bench.text import amount

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
GROWTH = "growth/"
REACHED = re.compile(r"\d+ of \d+ snapshots after \d+ s")
ONE_BY_ONE = ", by a command and a write for each; blockvault takes a hundred in one process"
"""What belongs to a reason of that form: the clock hardly runs for who needs no commands."""
TIME_SAVED = "left out to save time"
TOO_SLOW = "would take too long in every size"
"""What was said before that, of some that are quick."""
IMPORTS = "import/all"
FORGET = "gc/forget"
CLEAN = "2026-12-01T03"
"""Since when that row begins on a clean disk in the first run too, which checks what is kept."""


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
    _drop_what_others_wrote(made)
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
        _complete_reasons(made, row)
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


def _drop_what_others_wrote(made: Results) -> None:
    """Who forgot in the first run was followed by a sync of what a check before it had written."""
    if FORGET not in made.rows or max(each.when for each in made.origin(FORGET)) >= CLEAN:
        return
    for name, cell in made.cells[FORGET].items():
        if cell.samples:
            first = dataclasses.replace(cell.samples[0], settle=None)
            alone = dataclasses.replace(cell, samples=[first, *cell.samples[1:]])
            made.cells[FORGET] = made.cells[FORGET] | {name: alone}


def _limit_by_yardsticks(made: Results, row: Row) -> None:
    """Requests are answered soonest by who keeps no history."""
    found = {}
    for name in YARDSTICKS:
        cell = made.cells[row.key].get(name)
        if cell and (best := floors.best(row, cell)) is not None:
            found[best] = cell
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


def _complete_reasons(made: Results, row: Row) -> None:
    """Who was left out for its time has a right to a reason that can be looked at."""
    for name, cell in made.cells[row.key].items():
        reason = cell.reason
        if row.key.startswith(GROWTH) and REACHED.fullmatch(reason):
            reason += ONE_BY_ONE
        if reason in (TIME_SAVED, TOO_SLOW):
            reason = TIME_SAVED
            if first := made.summary(IMPORTS, name):
                reason += f": {amount(first.median, 's')} for the first imports of the series"
        if reason != cell.reason:
            told = dataclasses.replace(cell, reason=reason)
            made.cells[row.key] = made.cells[row.key] | {name: told}


def _limit_by_flushes(made: Results, row: Row, requests: int) -> None:
    """The protocol's rate is no limit of what waits for a disk: the lower of both is, each at its
    best, as limits are stated.
    """
    bare, durable = floors.floor(made, row), made.cells.get(_durable(made), {}).get(LIMIT)
    cells = dict(made.cells[row.key])
    if durable is None or not _same_machine(made, row):
        cells.pop(LIMIT, None)
    else:
        slow = Cell(samples=[Sample(requests / each.value) for each in durable.samples])
        flushed = floors.best(row, slow)
        if bare is None or (flushed is not None and flushed < bare.median):
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
