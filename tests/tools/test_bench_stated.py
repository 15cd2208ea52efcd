"""Old results read by the rules of today: what was no answer to its row is not shown as one."""

from __future__ import annotations

import pytest

from tests.tools.test_bench_figures import facts
from tools.bench import report
from tools.bench.peers.base import Archive
from tools.bench.registry import ARCHIVES
from tools.bench.results import Results
from tools.bench.rows import series
from tools.bench.stated import DIFF, stated

COMPARE = "qemu-img compare -f qcow2 -F qcow2 STORE/one.qcow2 STORE/two.qcow2"
MAP = "qemu-img map --output=json STORE/two.qcow2"


def diffed(name: str, command: str) -> Results:
    """Results in which a contender's diff was measured with a command."""
    made = Results(facts=facts())
    made.add(series.DIFF, name, 0.0125)
    made.add(series.DIFF, "blockvault", 0.25)
    made.commands[DIFF] = {name: [command], "blockvault": ["blockvault diff --extents"]}
    return made


@pytest.mark.parametrize(
    ("name", "command", "state"),
    [
        ("borg-fixed", "borg diff STORE/repository::one two", "not offered"),
        ("borg-default", "borg diff STORE/repository::one two", "not offered"),
        ("qcow2-files", COMPARE, "not offered"),
        ("qcow2-chain", COMPARE, "not run"),
        ("qcow2-chain", MAP, "measured"),
        ("btrfs", "btrfs send --no-data", "measured"),
    ],
)
def test_what_is_no_diff_is_left_out_with_its_command(name: str, command: str, state: str) -> None:
    made = diffed(name, command)
    today = stated(made)
    cell = today.cells[DIFF][name]
    assert (cell.state, bool(cell.samples)) == (state, state == "measured")
    assert bool(cell.reason) == (state != "measured")
    assert (name in today.commands[DIFF]) == (state == "measured")
    assert today.summary(DIFF, "blockvault") is not None
    page = report.page(made, plots=[], folder="f", raw="r", progress="")
    assert ("12.5 ms" in page) == (command in page) == (state == "measured")
    assert (f"* {name}, {state}: {cell.reason}" in page) == (state != "measured")
    assert made == diffed(name, command), "what was measured stays"


def test_a_reason_that_was_recorded_stays() -> None:
    made = Results(facts=facts())
    made.leave_out(series.DIFF, "borg-fixed", "failed", "no space left")
    assert stated(made).cells[DIFF]["borg-fixed"].reason == "no space left"


@pytest.mark.parametrize("kind", ARCHIVES, ids=lambda kind: kind.name)
def test_who_has_no_diff_says_why(kind: type[Archive]) -> None:
    assert (kind.diff is Archive.diff) == bool(kind.no_diff)


def test_the_key_is_that_of_the_row() -> None:
    assert series.DIFF.key == DIFF
