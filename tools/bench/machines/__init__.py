"""Full snapshots of a running machine, measured against QEMU's own, in one run.

    python -m tools.bench.machines [--rounds 10] [--memory 512M] [--fill MIB] [--work DIR]
                                   [--json FILE]

The guest is that of tools/guest, once in a vault and once on a qcow2 image.  They take turns: in
each round a full snapshot of the one, ``savevm``, ``migrate`` to a file and the same in the
background of the other; then in each a rollback and ``loadvm``; then a clone and a QEMU that is
started with ``-loadvm``.  Who begins changes from round to round, and whose turn it is not stands
still.

A pause is what the guest sees: for blockvault the time from the order to stop to the answer to go
on; for QEMU's commands that keep the guest stopped, the time from their beginning to the end; for
its background snapshot, which does not, the time between its events ``STOP`` and ``RESUME``.  What
that wrote is brought back by a QEMU that is started with ``-incoming``; as that of ``migrate`` it
holds no disk.
Going back and starting count until the guest answers on its console.  ``rollback`` and ``loadvm``
go back inside of a QEMU that runs; a clone and ``-loadvm`` start one.  ``loadvm`` is a line to a
monitor that is connected, so ``rollback`` is also measured as what the command sends to the
machine's process: an order.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tools.bench.bench import turns
from tools.bench.machines.qemu import Theirs
from tools.bench.machines.vault import CLONES, Ours

Step = Callable[[int], None]


class Side(Protocol):
    """One of the two guests."""

    def running(self) -> AbstractContextManager[None]:
        """Its turn; it stands still outside of that."""


def measure(ours: Ours, theirs: Theirs, rounds: int) -> None:
    """All rounds; each side holds its figures afterwards."""
    take_turns(rounds, (ours, ours.snapshot), (theirs, theirs.keep))
    take_turns(rounds, (ours, ours.go_back), (theirs, theirs.go_back))
    theirs.end()
    for number in range(max(rounds, CLONES)):
        wanted = (ours.clone, number < CLONES), (theirs.start, number < rounds)
        for step in turns([step for step, asked in wanted if asked], number):
            step(number)


def take_turns(rounds: int, *parts: tuple[Side, Step]) -> None:
    """In each round one step of each side, while all others stand still."""
    for number in range(rounds):
        for side, step in turns(parts, number):
            with side.running():
                step(number)


def demands(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Each demand: what was measured, and what it must not exceed."""
    pause = ours["pause_ms"]
    return {
        "pause, ms": (pause, 150.0),
        "pause / savevm": (pause / theirs["savevm_ms"], 0.2),
        "pause / migrate": (pause / theirs["migrate_ms"], 0.2),
        "first snapshot / used memory": (ours["first_stored_of_used"], 0.40),
        "later snapshot / used memory": (ours["later_stored_of_used"], 0.03),
        "restore, s": (ours["restore_s"], 2.0),
        "restore / loadvm": (ours["restore_s"] / theirs["loadvm_s"], 1.0),
        "restore as an order / loadvm": (ours["restore_order_s"] / theirs["loadvm_s"], 1.0),
        "clone, s": (ours["clone_s"], 2.0),
        "clone / start with -loadvm": (ours["clone_s"] / theirs["start_loadvm_s"], 1.0),
        "ten clones / one snapshot": (ours["ten_clones_of_one"], 0.10),
    }
