"""Comparisons: only like with like, and it is said what was compared with what."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.tools.test_bench_figures import PUBLISHED, RATE, TIME, facts, results
from tools.bench import compare, report
from tools.bench.plan import FULL
from tools.bench.results import LIMIT, Results, Row
from tools.bench.scope import NEEDS


def changed(**different: Any) -> Results:
    """The same results, but twice as fast, of a run with other facts; ``plan`` adds to its."""
    made = results(1.0)
    plan = made.facts["plan"] | different.pop("plan", {})
    made.facts |= different | {"plan": plan, "commit": "abcdef"}
    return made


IMAGE = {"name": "base", "size": 2 << 30, "data": 1_500_000, "new": 1_000_000}


@pytest.mark.parametrize(
    ("different", "time", "rate"),
    [
        ({}, "", ""),
        ({"runs": 3}, "", ""),
        ({"processor": "another", "cores": 64}, "", ""),
        ({"mode": "full"}, "mode quick before, full now", "mode quick before, full now"),
        (
            {"inputs": [IMAGE]},
            "images 1 of 10.0 B with 1.50 MB of data before, 1 of 2.15 GB with 1.50 MB of data now",
            "",
        ),
        (
            {"inputs": [{**facts()["inputs"][0], "new": 999_999}]},
            "images some before, others of that size now",
            "",
        ),
        ({"plan": {"nbd_size": 2048}}, "", "nbd size None before, 2,048 now"),
        ({"plan": {"nbd_jobs": ["seqread"]}}, "", "nbd jobs None before, seqread now"),
        ({"plan": {"latency_data": 1}}, "", ""),
    ],
)
def test_rows_about_other_work_are_not_compared(
    different: dict[str, Any], time: str, rate: str
) -> None:
    ours = [
        change
        for change in compare.changes(results(), changed(**different))
        if change.contender == "blockvault"
    ]
    assert [change.apart for change in ours] == [time, rate]
    assert [change.verdict for change in ours] == ["" if time else "better", ""]


def test_what_is_not_comparable_is_shown_and_counts_nowhere() -> None:
    text = compare.page(results(), changed(mode="full"))
    reason = "not comparable: mode quick before, full now"
    assert f"| First imports together | 2.00 s | 1.00 s | – | {reason} |" in text
    assert "No peer was measured on the same work in both runs." in text


IMPORT = "blockvault import disk.img --level 3 -m s1a"


@pytest.mark.parametrize(
    ("command", "apart"),
    [
        ("blockvault import new.img --level 3 -m s1a", "measured with other commands"),
        ("blockvault import disk.img --level 19 -m s1a", "measured with other commands"),
        ("blockvault import disk.img --level 3 -m s2a", ""),
        (f"CACHE=STORE/cache SAY='a b' {IMPORT}", ""),
        (None, ""),
    ],
    ids=["other", "other option", "of another run", "environment", "not known"],
)
def test_figures_of_other_commands_are_not_compared(command: str | None, apart: str) -> None:
    old, new = results(), changed()
    old.commands[TIME.key] = {"blockvault": [IMPORT]}
    new.commands[TIME.key] = {"blockvault": [command]} if command else {}
    times = [change for change in compare.changes(old, new) if change.row == TIME]
    found = {change.contender: change.apart for change in times}
    assert found == {"blockvault": apart, "borg-fixed": "", LIMIT: ""}


def test_a_row_that_asks_for_something_else_now_is_not_compared() -> None:
    """Though its key and its commands stayed."""
    old, new = results(), changed()
    old.rows[TIME.key] = dataclasses.replace(TIME, title="The last import")
    text = compare.page(old, new)
    reason = "not comparable: asked before: The last import"
    assert f"| First imports together | 2.00 s | 1.00 s | – | {reason} |" in text


@pytest.mark.parametrize(("runs", "verdict"), [(2, "(few runs)"), (3, "better")])
def test_of_one_or_two_runs_nothing_is_called_better(runs: int, verdict: str) -> None:
    new = changed()
    del new.cells[TIME.key]["blockvault"].samples[runs:]
    text = compare.page(results(), new)
    (line,) = [line for line in text.splitlines() if line.startswith("| First imports")]
    assert line.endswith(f" × | {verdict} |")


def test_another_machine_is_said_and_compared() -> None:
    text = compare.page(results(), changed(processor="another", cores=64))
    said = "Not of one machine: a processor before, another now; cores 2 before, 64 now."
    assert said in text
    assert text.index(said) < text.index("| before | now |")
    assert "| First imports together | 2.00 s | 1.00 s | 0.50 × | better |" in text
    assert "Not of one machine" not in compare.page(results(), changed())


def test_the_commits_are_those_that_the_rows_come_from() -> None:
    """Of results that were put together the facts name a run that no row may be of."""
    newer = Results(facts=facts() | {"commit": "newer"})
    newer.facts["plan"] = {"part": [1, 1], "once": []}
    newer.add(TIME, "blockvault", 1.0)
    newer.add(RATE, "blockvault", 1.0)
    old = results()
    old.merge(newer)
    assert "Before: commit newer. Now: commit abcdef." in compare.page(old, changed())


def test_titles_that_stand_twice_get_their_group() -> None:
    old, new = results(), changed()
    for made in (old, new):
        for group in ("latency", "without starting the program"):
            made.add(Row(f"{group}/x", group, "Tag, 1 GiB disk"), "blockvault", 1.0)
    text = compare.page(old, new)
    assert "| latency: Tag, 1 GiB disk |" in text
    assert "| without starting the program: Tag, 1 GiB disk |" in text
    assert "| First imports together |" in text


def test_rows_keep_what_they_were_measured_on_when_they_are_put_together(tmp_path: Path) -> None:
    old, other = results(), changed(mode="full", plan={"nbd_size": 2048})
    del other.rows[TIME.key]
    old.merge(other)
    old.save(tmp_path / "r.json")
    again = Results.load(tmp_path / "r.json")
    assert again.scope(TIME.key)["mode"] == "quick"
    assert again.scope(RATE.key) == other.scope(RATE.key)
    assert again.scope(RATE.key)["nbd_size"] == 2048


def test_parts_of_different_work_are_not_put_together() -> None:
    first, second = results(), results(1.0)
    first.facts["plan"] = {"part": [1, 2]}
    second.facts["plan"] = {"part": [2, 2]}
    second.facts["mode"] = "full"
    first.merge(second)
    assert len(first.cells[TIME.key]["blockvault"].samples) == 5


def test_sizes_of_rows_from_before_they_were_kept_are_unknown() -> None:
    old = results()
    old.merge(changed())
    old.scopes.clear()
    reasons = {change.row.key: change.apart for change in compare.changes(old, results())}
    assert reasons == {TIME.key: "", RATE.key: "it is not known of what size the work was"}
    assert not any(change.apart for change in compare.changes(old, old)), "the very same runs"


def test_what_rows_depend_on_is_in_the_plan() -> None:
    named = {name for needs in NEEDS.values() for name in needs}
    named -= {"images", "accelerator"}  # of the facts
    assert named <= set(FULL.__dataclass_fields__)


def test_every_row_says_what_it_depends_on() -> None:
    published = Results.load(PUBLISHED)
    assert [key for key in published.rows if not key.startswith(tuple(NEEDS))] == []


@pytest.mark.parametrize(
    ("before", "now", "apart", "heading"),
    [
        ("kvm", "kvm", "", ", guests under kvm."),
        ("kvm", "tcg", "accelerator kvm before, tcg now", ", guests under tcg."),
        (None, "kvm", "accelerator unknown before, kvm now", ", guests under kvm."),
        (None, None, "", "commit 0123456789."),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_machines_are_compared_under_one_accelerator_and_it_is_named(
    before: str | None, now: str | None, apart: str, heading: str, joined: bool
) -> None:
    row = Row("vm/pause", "running machines", "Pause")

    def measured(accelerator: str | None, when: str) -> Results:
        made = Results(facts={**facts(), "when": when})
        if accelerator:
            made.facts["accelerator"] = accelerator
        made.add(row, "blockvault", 1.0)
        return made

    old, new = measured(before, "2026-01-01T00:00"), measured(now, "2026-01-02T00:00")
    if joined:
        old.scopes[row.key] = {"mode": "quick", "machine_rounds": None}
        old.scopes[row.key] |= {"accelerator": before} if before else {}
    (change,) = compare.changes(old, new)
    assert change.apart == apart
    assert heading in report.page(new, plots=[], folder="", raw="", progress="")
