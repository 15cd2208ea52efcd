"""Rows that the page owes its readers and cannot have yet, shown as such.

When blockvault has the command, the row says that its measurement is missing: it cannot be
forgotten.
"""

from __future__ import annotations

from tools.bench.bench import Bench
from tools.bench.peers import vault
from tools.bench.results import Row

GROUP = "not measured yet"
ROWS = (
    (Row("vm/pause", GROUP, "Pause of a running machine for a full snapshot"), ("vm",)),
    (Row("vm/restore", GROUP, "A full snapshot running again"), ("vm",)),
    (Row("gc/all", GROUP, "Collect what no snapshot needs"), ("gc",)),
    (Row("gc/nothing", GROUP, "Collect when there is nothing to collect"), ("gc",)),
)


def run(bench: Bench) -> None:
    """Ask the program for each command that a row waits for."""
    for row, words in ROWS:
        if vault.offers(*words):
            reason = f"'{' '.join(words)}' exists, its benchmark is still to be written"
            bench.results.leave_out(row, vault.Blockvault.name, "not run", reason)
        else:
            reason = f"no command '{' '.join(words)}'"
            bench.results.leave_out(row, vault.Blockvault.name, "not built yet", reason)
