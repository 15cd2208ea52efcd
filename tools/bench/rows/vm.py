"""A running machine: full snapshot, restore and clone, from ``tools.bench.machines``.

That program boots a guest twice, in a vault and on a qcow2 image, which take turns round by round;
here each of its runs is one sample, the median of its rounds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench.bench import Bench, say
from tools.bench.commands import CommandFailed, command, shown
from tools.bench.commands import run as run_commands
from tools.bench.peers import vault
from tools.bench.peers.qemu import QemuBackground, QemuMigrate, QemuSavevm
from tools.bench.results import LIMIT, Row, State, Unit
from tools.bench.rows import limits

GROUP = "running machines"
ROOT = Path(__file__).parents[3]
OURS = vault.Blockvault.name


class Size(NamedTuple):
    """A guest: what its rows are called, and how much memory it has and keeps full, in MiB."""

    key: str
    name: str
    memory: int
    fill: int

    def row(self, key: str, title: str, unit: Unit = "s", *, limit: str = "") -> Row:
        return Row(f"{self.key}/{key}", GROUP, title + self.name, unit, limit=limit)


SMALL = Size("vm", "", 512, 0)
LARGE = Size("vm-large", ", 4 GiB of memory, half of it in use", 4096, 1500)


class Rows(NamedTuple):
    """What is measured of one guest."""

    pause: Row
    held: Row
    restore: Row
    order: Row
    clone: Row
    used: Row
    first: Row
    later: Row

    @classmethod
    def of(cls, size: Size) -> Rows:
        answer, text = limits.TEXT["restore"], limits.TEXT
        return cls(
            pause=size.row(
                "pause", "Pause of a running machine for a full snapshot", limit=text["pause"]
            ),
            held=size.row("held", "Its disk's writes wait for a full snapshot, pause included"),
            restore=size.row(
                "restore", "A full snapshot running again, until the guest answers", limit=answer
            ),
            order=size.row(
                "order", "The same as an order to the process that runs it", limit=answer
            ),
            clone=size.row(
                "clone", "A clone of a full snapshot, until its guest answers", limit=text["clone"]
            ),
            used=size.row("used", "Memory that the guest uses", "B"),
            first=size.row("first", "Stored by the first full snapshot", "B", limit=text["state"]),
            later=size.row("later", "Stored by each later full snapshot", "B"),
        )


def run(bench: Bench) -> None:
    """As many samples as the plan has machine runs; none where the guest cannot run."""
    reason = missing(bench)
    for size in (SMALL, LARGE):
        rows = Rows.of(size)
        if reason is None:
            _measure(bench, size, rows)
            continue
        state: State = "not run" if vault.offers("vm") else "not built yet"
        for row in rows:
            bench.results.leave_out(row, OURS, state, reason)


def _measure(bench: Bench, size: Size, rows: Rows) -> None:
    report = bench.work / "machines.json"
    rounds = ("--rounds", str(bench.plan.machine_rounds), "--work", bench.work)
    guest = ("--memory", f"{size.memory}M", "--fill", str(size.fill))
    words = (sys.executable, "-m", "tools.bench.machines", *rounds, *guest, "--json", report)
    # its status says whether targets were met, which is not the question here
    each = command(*words, cwd=ROOT, fine=(0, 1))
    for number in bench.numbers(bench.plan.machine_runs):
        say(f"running machines{size.name}: run {number + 1} of {bench.plan.machine_runs}")
        try:
            run_commands([each], limit=bench.plan.time_limit)
        except CommandFailed as failure:
            for row in rows:
                bench.results.leave_out(row, OURS, "failed", str(failure))
            return
        _record(bench, rows, json.loads(report.read_text()))
    names = {bench.work: "WORK", Path(sys.executable): "python"}
    for row in (rows.pause, rows.held, rows.restore, rows.order, rows.clone):
        bench.results.commands[row.key] = {OURS: shown([each], names)}


def missing(bench: Bench) -> str | None:
    """Why these rows are not measured, if so."""
    if not vault.offers("vm"):
        return "no command 'vm'"
    if bench.plan.machine_runs == 0:
        return "only in a full run"
    return QemuSavevm.missing()


STANDING = {QemuSavevm.name: "savevm_ms", QemuMigrate.name: "migrate_ms"}
"""Those whose guest stands all the time, so that its writes do as well."""


def _record_background(
    bench: Bench, rows: Rows, theirs: dict[str, float], missing: dict[str, str]
) -> None:
    """What QEMU wrote while its guest ran, if it and the kernel do that and it can be restored."""
    parts = (
        (rows.pause, "pause", "background_ms", 1000),
        (rows.restore, "restore", "incoming_s", 1),
    )
    for row, part, key, scale in parts:
        if part in missing:
            bench.results.leave_out(row, QemuBackground.name, "not run", missing[part])
        elif key in theirs:
            bench.results.add(row, QemuBackground.name, theirs[key] / scale)


def _record(bench: Bench, rows: Rows, found: dict[str, Any]) -> None:
    ours, theirs, add = found["blockvault"], found["qemu"], bench.results.add
    add(rows.pause, OURS, ours["pause_ms"] / 1000)
    add(rows.pause, QemuSavevm.name, theirs["savevm_ms"] / 1000)
    add(rows.pause, QemuMigrate.name, theirs["migrate_ms"] / 1000)
    add(rows.pause, LIMIT, theirs["stop_ms"] / 1000)
    add(rows.held, OURS, ours["held_ms"] / 1000)
    for name, key in STANDING.items():
        add(rows.held, name, theirs[key] / 1000)
    _record_background(bench, rows, theirs, found.get("missing", {}))
    add(rows.restore, OURS, ours["restore_s"])
    add(rows.restore, QemuSavevm.name, theirs["loadvm_s"])
    add(rows.order, OURS, ours["restore_order_s"])
    add(rows.order, QemuSavevm.name, theirs["loadvm_s"])
    add(rows.clone, OURS, ours["clone_s"])
    add(rows.clone, QemuSavevm.name, theirs["start_loadvm_s"])
    for row in (rows.restore, rows.order):
        add(row, LIMIT, theirs["answer_s"])
    add(rows.clone, LIMIT, theirs["bare_s"])
    add(rows.used, OURS, ours["used_bytes"])
    add(rows.first, OURS, ours["first_stored_of_used"] * ours["used_bytes"])
    add(rows.first, LIMIT, theirs["state_bytes"])
    add(rows.later, OURS, ours["later_stored_of_used"] * ours["used_bytes"])
