"""Old results read by the rules of today: what was no answer to its row is not shown as one."""

from __future__ import annotations

import pytest

from tests.tools.test_bench_figures import facts
from tools.bench import report
from tools.bench.commands import Cost
from tools.bench.peers.base import Archive
from tools.bench.registry import ARCHIVES
from tools.bench.results import Results, Row
from tools.bench.rows import growth, scale, series
from tools.bench.stated import DIFF, FORGET, IMPORTS, ONE_BY_ONE, TIME_SAVED, TOO_SLOW, stated

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


def reason(made: Results, row: Row) -> str:
    """The page's, which is also what it is when it is read again."""
    found = stated(made)
    assert stated(found) == found
    return found.cells[row.key]["qcow2-chain"].reason


@pytest.mark.parametrize("left_out", [TIME_SAVED, TOO_SLOW], ids=["now", "before"])
def test_who_is_left_out_for_its_time_has_a_right_to_the_figure(left_out: str) -> None:
    made, row = Results(facts=facts()), scale._row("import", 16 << 20)
    made.leave_out(row, "qcow2-chain", "not run", left_out)
    assert reason(made, row) == TIME_SAVED
    made.add(series.TOTAL, "qcow2-chain", 9.8)
    assert reason(made, row) == "left out to save time: 9.80 s for the first imports of the series"
    assert made.cells[row.key]["qcow2-chain"].reason == left_out, "what was recorded stays"


def test_who_was_too_slow_for_many_snapshots_took_them_by_commands() -> None:
    made, row = Results(facts=facts()), growth._row("snapshot", 1000)
    made.leave_out(row, "qcow2-chain", "not run", "305 of 1000 snapshots after 60 s")
    assert reason(made, row) == f"305 of 1000 snapshots after 60 s{ONE_BY_ONE}"
    assert "blockvault takes a hundred in one process" in ONE_BY_ONE
    page = report.page(made, plots=[], folder="f", raw="r", progress="")
    assert f"305 of 1000 snapshots after 60 s{ONE_BY_ONE}" in page


@pytest.mark.parametrize(
    ("when", "written"),
    [("2026-11-30T22:53:05+00:00", ""), ("2026-12-02T10:00:00+00:00", ", +1.16 s")],
    ids=["before", "now"],
)
def test_what_a_check_wrote_is_not_told_of_who_came_next(when: str, written: str) -> None:
    made = Results(facts=facts() | {"when": when})
    made.add_cost(series.FORGET, "borg-fixed", Cost(0.5, 0.2, 0.1, 8, settle=1.16))
    page = report.page(made, plots=[], folder="f", raw="r", progress="")
    assert f"| 0.30 s, 8.00 B{written} |" in page
    assert made.cells[FORGET]["borg-fixed"].samples[0].settle == 1.16, "what was measured stays"


@pytest.mark.parametrize("kind", ARCHIVES, ids=lambda kind: kind.name)
def test_who_has_no_diff_says_why(kind: type[Archive]) -> None:
    assert (kind.diff is Archive.diff) == bool(kind.no_diff)


def test_the_keys_are_those_of_the_rows() -> None:
    assert (series.DIFF.key, series.FORGET.key, series.TOTAL.key) == (DIFF, FORGET, IMPORTS)
