"""A running machine: full snapshot, restore and clone, from ``tools.bench.machines``.

That program boots a guest and takes turns with it; here each of its runs is one sample, the median
of its rounds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tools.bench.bench import Bench, say
from tools.bench.commands import CommandFailed, command, shown
from tools.bench.commands import run as run_commands
from tools.bench.peers import vault
from tools.bench.peers.qemu import QemuMigrate, QemuSavevm
from tools.bench.results import LIMIT, Row, State
from tools.bench.rows import limits

GROUP = "running machines"
ROOT = Path(__file__).parents[3]
OURS = vault.Blockvault.name
PAUSE = Row("vm/pause", GROUP, "Pause of a running machine for a full snapshot")
LIMIT_TEXT = limits.TEXT["restore"]
RESTORE = Row(
    "vm/restore", GROUP, "A full snapshot running again, until the guest answers", limit=LIMIT_TEXT
)
ORDER = Row(
    "vm/order", GROUP, "The same as an order to the process that runs it", limit=LIMIT_TEXT
)
CLONE = Row("vm/clone", GROUP, "A clone of a full snapshot, ready to run", limit=LIMIT_TEXT)
USED = Row("vm/used", GROUP, "Memory that the guest uses", "B")
FIRST = Row("vm/first", GROUP, "Stored by the first full snapshot", "B")
LATER = Row("vm/later", GROUP, "Stored by each later full snapshot", "B")


def run(bench: Bench) -> None:
    """As many samples as the plan has machine runs; none where the guest cannot run."""
    reason = missing(bench)
    if reason is not None:
        state: State = "not run" if vault.offers("vm") else "not built yet"
        for row in (PAUSE, RESTORE, ORDER, CLONE, FIRST, LATER):
            bench.results.leave_out(row, OURS, state, reason)
        return
    report = bench.work / "machines.json"
    rounds = ("--rounds", str(bench.plan.machine_rounds))
    words = (sys.executable, "-m", "tools.bench.machines", *rounds, "--json", report)
    # its status says whether targets were met, which is not the question here
    each = command(*words, cwd=ROOT, fine=(0, 1))
    for number in bench.numbers(bench.plan.machine_runs):
        say(f"running machines: run {number + 1} of {bench.plan.machine_runs}")
        try:
            run_commands([each], limit=bench.plan.time_limit)
        except CommandFailed as failure:
            bench.results.leave_out(PAUSE, OURS, "failed", str(failure))
            return
        _record(bench, json.loads(report.read_text()))
    names = {bench.work: "WORK", Path(sys.executable): "python"}
    bench.results.commands[PAUSE.key] = {OURS: shown([each], names)}


def missing(bench: Bench) -> str | None:
    """Why these rows are not measured, if so."""
    if not vault.offers("vm"):
        return "no command 'vm'"
    if bench.plan.machine_runs == 0:
        return "only in a full run"
    return QemuSavevm.missing()


def _record(bench: Bench, found: dict[str, dict[str, float]]) -> None:
    ours, theirs, add = found["blockvault"], found["qemu"], bench.results.add
    add(PAUSE, OURS, ours["pause_ms"] / 1000)
    add(PAUSE, QemuSavevm.name, theirs["savevm_ms"] / 1000)
    add(PAUSE, QemuMigrate.name, theirs["migrate_ms"] / 1000)
    add(RESTORE, OURS, ours["restore_s"])
    add(RESTORE, QemuSavevm.name, theirs["loadvm_s"])
    add(ORDER, OURS, ours["restore_order_s"])
    add(ORDER, QemuSavevm.name, theirs["loadvm_s"])
    add(CLONE, OURS, ours["clone_s"])
    add(CLONE, QemuSavevm.name, theirs["start_loadvm_s"])
    copied = limits.copy_seconds(bench, int(ours["used_bytes"]))
    for row in (RESTORE, ORDER, CLONE):
        add(row, LIMIT, copied)
    add(USED, OURS, ours["used_bytes"])
    add(FIRST, OURS, ours["first_stored_of_used"] * ours["used_bytes"])
    add(LATER, OURS, ours["later_stored_of_used"] * ours["used_bytes"])
