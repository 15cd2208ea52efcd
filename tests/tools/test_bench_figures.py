"""Numbers, results files, pages and comparisons."""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.bench import compare, headlines, method, plots, report
from tools.bench.commands import Cost
from tools.bench.results import LIMIT, Results, Row, Sample
from tools.bench.sections import OURS, SECTIONS, Line
from tools.bench.stated import FSYNC
from tools.bench.stats import FEW, differs, slope, summarize
from tools.bench.text import amount, digits, spread, table

TIME = Row("import/all", "series", "First imports together", limit="the bare work")
RATE = Row("nbd/randwrite-16", "NBD", "Random write", "IOPS")
PUBLISHED = Path(__file__).parents[2] / "docs" / "benchmarks" / "results.json"


def facts() -> dict[str, Any]:
    contenders: dict[str, dict[str, Any]] = {
        "blockvault": {"title": "blockvault", "missing": None, "version": "0.1.0"},
        "borg-fixed": {"title": "borg", "missing": None, "version": "1.2.4"},
        "restic": {"title": "restic", "missing": "restic not installed", "version": None},
        "memory": {"title": "no store", "missing": None, "version": "1.0"},
    }
    for name, each in contenders.items():
        each["yardstick"] = name == "memory"
    return {
        "when": "2026-11-23T10:00:00+00:00",
        "commit": "0123456789",
        "mode": "quick",
        "runs": 5,
        "plan": {"part": [1, 1], "once": ["bup"]},
        "duration": 90.0,
        "processor": "a processor",
        "cores": 2,
        "memory": 25_000_000_000,
        "system": "Debian",
        "kernel": "6.1",
        "python": "3.11.7",
        "file_system": "ext4",
        "load_before": 0.1,
        "load_after": 1.1,
        "images": "made up",
        "inputs": [{"name": "base", "size": 10, "data": 1_500_000, "new": 1_000_000}],
        "libraries": {"lmdb": "3.0.0"},
        "contenders": contenders,
    }


def results(ours: float = 2.0) -> Results:
    made = Results(facts=facts())
    for factor in (0.98, 0.99, 1.0, 1.01, 1.02):
        made.add_cost(TIME, "blockvault", Cost(ours * factor, 1.0, 0.5, 50_000_000, 0.1))
        made.add_cost(TIME, "borg-fixed", Cost(4.0 * factor, 3.0, 0.5, 80_000_000, 0.1))
        made.add(TIME, LIMIT, 1.0 + abs(factor - 1))  # the least of them is the limit
        made.add(RATE, "blockvault", 50_000 * factor)
        made.add(RATE, "borg-fixed", 40_000 * factor)
    made.leave_out(TIME, "restic", "not run", "restic not installed")
    made.commands["import/all"] = {"blockvault": ["blockvault import disk.img"]}
    return made


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.234, "s", "1.23 s"),
        (0.0456, "s", "45.6 ms"),
        (0.000_161, "s", "161 µs"),
        (0.0, "s", "0.00 µs"),
        (470_123_456, "B", "470 MB"),
        (12_500, "B", "12.5 kB"),
        (46_213.4, "IOPS", "46,213"),
        (812.0, "MB/s", "812 MB/s"),
    ],
)
def test_amounts_have_three_digits_and_a_unit_that_fits(value: float, unit: Any, text: str) -> None:
    assert amount(value, unit) == text


@given(st.floats(0.01, 1e9))
def test_digits_are_right_to_one_percent(value: float) -> None:
    shown = float(digits(value).replace(",", ""))
    assert abs(shown - value) <= 0.5 / 100 * max(value, 1) + 1e-9, "0.875 may become 0.88"


def test_spread_is_shown_only_where_it_is_wide() -> None:
    assert spread(summarize([1.0, 1.01, 1.0, 0.99, 1.0]), "s") == "1.00 s"
    assert spread(summarize([1.0, 1.5, 1.0, 0.5, 1.2]), "s") == "1.00 s ±10%"


def test_summary_of_few_and_of_many() -> None:
    assert summarize([3.0, 1.0]) == (2.0, 1.0, 3.0, 2, 1.0, 3.0)
    assert summarize([1.0, 2.0, 3.0, 4.0, 100.0]) == (3.0, 2.0, 4.0, 5, 1.0, 100.0)
    with pytest.raises(ValueError, match="no values"):
        summarize([])


@given(st.floats(-2, 2), st.floats(0.01, 100))
def test_slope_finds_the_power_law_it_was_given(exponent: float, factor: float) -> None:
    found = slope([(work, factor * work**exponent) for work in (1.0, 10.0, 100.0, 1000.0)])
    assert found is not None
    assert found.exponent == pytest.approx(exponent, abs=1e-6)
    assert found.factor == pytest.approx(factor, rel=1e-6)


def test_slope_wants_three_points_of_different_work() -> None:
    assert slope([(1, 1), (2, 2)]) is None
    assert slope([(1, 1), (1, 2), (1, 3)]) is None
    assert slope([(1, 0), (2, 0), (3, 0)]) is None


def test_change_is_told_from_noise() -> None:
    old = summarize([1.0, 1.01, 1.02, 0.99, 0.98])
    assert differs(old, summarize([1.2, 1.21, 1.22, 1.19, 1.18]))
    assert not differs(old, summarize([1.0, 1.02, 1.04, 1.01, 1.0]))
    assert not differs(summarize([1.0] * 5), summarize([1.01] * 5)), "apart, but by one percent"


@pytest.mark.parametrize(
    ("old", "new", "apart"),
    [
        ([1, 2, 3, 4, 9], [3.5, 5, 6, 7, 8], False),
        ([1, 2, 3, 4, 4.5], [5, 6, 7, 8, 9], True),
        ([1, 2, 3], [4, 5, 6], True),
        ([1, 2, 3], [4, 5], False),
        ([1], [4, 5, 6], False),
        ([1, 1, 2, 2, 2, 2, 3, 9], [3, 6, 6, 6, 6, 7, 7, 7], True),
        ([1, 1, 2, 2, 2, 2, 3, 9], [3, 6, 6, 6, 6, 7, 7], False),
    ],
    ids=["five", "five, apart", "three", "two", "one", "eight", "eight and seven"],
)
def test_few_samples_tell_nothing_by_their_quartiles(
    old: Sequence[float], new: Sequence[float], apart: bool
) -> None:
    """Those of five and five part in every fifth case, without any difference."""
    assert differs(summarize(old), summarize(new)) == apart
    assert differs(summarize(new), summarize(old)) == apart


def test_results_survive_the_file(tmp_path: Path) -> None:
    made = results()
    made.save(tmp_path / "r.json")
    assert Results.load(tmp_path / "r.json") == made


def test_a_file_that_cannot_be_written_anew_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, _: Path) -> None:
        assert Results.load(source).facts["commit"] == "newer", "it is whole by then"
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    file, newer = tmp_path / "r.json", results(1.0)
    results().save(file)
    newer.facts["commit"] = "newer"
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=f"No space left on device: '{file}'"):
        newer.save(file)
    assert Results.load(file) == results()
    assert list(tmp_path.iterdir()) == [file]


def test_merged_results_take_rows_from_both_runs() -> None:
    first, second = results(), Results(facts=facts())
    second.add(TIME, "blockvault", 9.0)
    second.add(Row("new", "NBD", "New", "IOPS"), "blockvault", 1.0)
    first.merge(second)
    assert first.cells[TIME.key]["blockvault"].samples[0].value == 9.0
    assert "borg-fixed" not in first.cells[TIME.key], "a row comes from one run as a whole"
    assert {RATE.key, "new"} <= first.cells.keys()
    assert first.facts["duration"] == 180.0


@pytest.mark.parametrize(
    ("other", "shown"), [("2/3", ["new", "old"]), ("1/3", ["new"])], ids=["joined", "replaced"]
)
def test_the_commands_of_a_row_are_those_it_was_measured_with(other: str, shown: list[str]) -> None:
    first, second = part("1/3", 1.0), part(other, 2.0)
    first.commands[TIME.key] = {"blockvault": ["old"], "borg-fixed": ["old"]}
    second.commands[TIME.key] = {"blockvault": ["new"]}
    first.merge(second)
    assert [commands[0] for commands in first.commands[TIME.key].values()] == shown


def test_rows_of_another_machine_say_so(tmp_path: Path) -> None:
    first, second = results(), Results(facts=facts() | {"processor": "another processor"})
    second.add(RATE, "blockvault", 1.0)
    first.merge(second)
    first.save(tmp_path / "r.json")
    again = Results.load(tmp_path / "r.json")
    assert {origin.processor for origin in again.origin(TIME.key)} == {"a processor"}
    text = report.page(again, plots=(), folder="", raw="", progress="")
    assert "on a processor and another processor (2 cores" in text
    assert "commit 0123456789, on another processor." in text
    assert "commit 0123456789." in text


@pytest.mark.parametrize(
    ("fact", "value", "said"),
    [
        ("processor", "another processor", "on a processor and another processor (2 cores, "),
        ("cores", 16, "on a processor (2 and 16 cores, "),
        ("file_system", "xfs", "of memory, ext4 and xfs)"),
    ],
)
def test_samples_of_two_machines_are_not_put_together(
    tmp_path: Path, fact: str, value: Any, said: str
) -> None:
    first, second = part("1/2", 1.0), part("2/2", 2.0)
    first.add(RATE, "blockvault", 1.0)
    second.facts[fact] = value
    first.merge(second)
    assert values(first) == [2.0]
    first.save(tmp_path / "r.json")
    again = Results.load(tmp_path / "r.json")
    assert [str(getattr(each, fact)) for each in again.origin(TIME.key)] == [str(value)]
    assert said in report.page(again, plots=(), folder="", raw="", progress="")


def part(name: str, value: float, commit: str = "0123456789") -> Results:
    """One part of a run with one row."""
    made = Results(facts=facts() | {"commit": commit})
    made.facts["plan"] = {"part": list(map(int, name.split("/"))), "once": []}
    made.add(TIME, "blockvault", value)
    return made


def values(results: Results) -> list[float]:
    return [sample.value for sample in results.cells[TIME.key]["blockvault"].samples]


def test_parts_of_one_run_are_put_together(tmp_path: Path) -> None:
    first = part("1/3", 1.0)
    first.merge(part("2/3", 2.0))
    first.save(tmp_path / "r.json")
    again = Results.load(tmp_path / "r.json")
    again.merge(part("3/3", 3.0))
    assert values(again) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("other", [("2/3", 9.0, "other"), ("1/3", 9.0), ("2/4", 9.0)])
def test_what_is_no_other_part_of_it_replaces_a_row(other: Any) -> None:
    first = part("1/3", 1.0)
    first.merge(part(*other))
    assert values(first) == [9.0]


def test_other_contenders_of_one_part_are_put_together() -> None:
    first, second = part("1/3", 1.0), Results(facts=facts())
    second.facts["plan"] = {"part": [1, 3], "once": []}
    second.add(TIME, "borg-fixed", 2.0)
    assert report.NOT_IN_TURNS not in report.page(first, plots=(), folder="", raw="", progress="")
    first.merge(second)
    assert first.cells[TIME.key].keys() == {"blockvault", "borg-fixed"}
    assert report.NOT_IN_TURNS in report.page(first, plots=(), folder="", raw="", progress="")


def test_what_is_asked_of_the_machine_alone_takes_no_turns() -> None:
    first, second = Results(facts=facts()), Results(facts=facts())
    for made in (first, second):
        made.add(FSYNC, LIMIT, 1e-3)
    first.merge(second)
    assert len(first.cells[FSYNC.key][LIMIT].samples) == 2
    assert report.NOT_IN_TURNS not in report.page(first, plots=(), folder="", raw="", progress="")


def test_a_part_that_failed_outweighs_the_others() -> None:
    first, second = part("1/2", 1.0), part("2/2", 2.0)
    second.leave_out(TIME, "blockvault", "failed", "broke")
    first.merge(second)
    assert first.summary(TIME.key, "blockvault") is None


def test_a_contender_that_took_part_in_one_run_is_not_missing() -> None:
    first, second = results(), results()
    second.facts["contenders"]["restic"] |= {"missing": None, "version": "0.14"}
    first.merge(second)
    assert first.facts["contenders"]["restic"]["missing"] is None


def test_all_versions_that_were_measured_are_said() -> None:
    first, newer, without = results(), results(), results()
    newer.facts["contenders"]["borg-fixed"] |= {"version": "1.4"}
    without.facts["contenders"]["borg-fixed"] |= {"version": "2.0", "missing": "left out"}
    for other in (newer, results(), without):
        first.merge(other)
    assert first.facts["contenders"]["borg-fixed"]["version"] == "1.2.4, 1.4"


def test_a_contender_that_older_results_do_not_know_is_taken_over() -> None:
    first, second = results(), results()
    second.facts["contenders"]["new"] = {"missing": None, "title": "New", "version": "1"}
    first.merge(second)
    assert first.facts["contenders"]["new"]["version"] == "1"


def test_a_failure_outweighs_samples_and_the_first_reason_stays() -> None:
    made = results()
    made.leave_out(TIME, "blockvault", "failed", "broke in run 3")
    made.leave_out(TIME, "blockvault", "not run", "after: broke in run 3")
    cell = made.cells[TIME.key]["blockvault"]
    assert made.summary(TIME.key, "blockvault") is None
    assert (cell.state, cell.reason) == ("failed", "broke in run 3")


def test_page_states_ratios_limits_reasons_and_commands() -> None:
    plot = plots.Plot("a", "A plot", "import/all", TIME.group)
    page = report.page(results(), plots=[plot], folder="benchmarks", raw="r", progress="- **x**")
    assert "* restic, not run: restic not installed (First imports together)" in page
    assert "* limit: the bare work" in page
    assert "blockvault       blockvault import disk.img" in page
    assert "![A plot](benchmarks/a.svg)" in page
    assert "- **x**" in page
    assert "1.50 s, 50.0 MB" in page, "processor time and peak memory"
    assert "Medians of 5 runs, commit 0123456789." in page
    assert "In the series bup take part in one run only." in page


@pytest.mark.parametrize(
    ("samples", "shown"),
    [(1, "9.00 s (1 run)"), (2, "9.00 s (2 runs)"), (5, "9.00 s"), (7, "9.00 s")],
)
def test_figures_of_fewer_runs_than_the_table_says_are_marked(samples: int, shown: str) -> None:
    made = results()
    for _ in range(samples):
        made.add(TIME, "memory", 9.0)
    page = report.page(made, plots=[], folder="f", raw="r", progress="")
    assert f"| First imports together | 2.00 s | 4.00 s | not run | {shown} | 1.00 s |" in page
    assert "Medians of 5 runs" in page


def test_the_method_claims_a_warm_up_for_those_that_have_one() -> None:
    rows = Path(report.__file__).with_name("rows")
    warm = {path.stem for path in rows.glob("*.py") if "thrown away" in path.read_text().lower()}
    assert warm == {"series", "start", "latency"}
    assert "The series, the start and the latency begin with a warm-up" in method.METHOD


def test_a_table_of_single_runs_marks_none() -> None:
    made = Results(facts=facts())
    made.add(TIME, "blockvault", 9.0)
    page = report.page(made, plots=[], folder="f", raw="r", progress="")
    assert "One run, commit 0123456789." in page
    assert "| First imports together | 9.00 s |" in page


@pytest.mark.parametrize(
    ("ours", "cells", "verdict"),
    [
        (2.0, "2.00 s | **2.00** | not run | – | – | – | 1.00 s, 2.00 ×", "borg in 1 of 1 lines."),
        (3.95, "3.95 s | 1.01 | not run | – | – | – | 1.00 s, 3.95 ×", "borg in 0 of 1 lines."),
        (8.0, "8.00 s | 0.50 | not run | – | – | – | 1.00 s, 8.00 ×", "borg in 0 of 1 lines."),
    ],
)
def test_the_first_table_says_who_is_ahead(ours: float, cells: str, verdict: str) -> None:
    page = headlines.page(results(ours))
    assert f"| First imports of all images | {cells} |" in page
    assert verdict in page


@pytest.mark.parametrize(("peer", "ahead"), [(10.0, 1), (45.0, 1), (60.0, 0)])
def test_the_verdict_counts_a_peers_figure_once(peer: float, ahead: int) -> None:
    """In the line of the like state, which is the first; the table has all of them."""
    made = Results(facts=facts())
    row = Row("nbd/randwrite-16", "NBD", "Random write", "IOPS")
    ours = {"snapshot": 50.0, "many": 40.0, "nested": 30.0}
    for state, rate in ours.items():
        often(made, row, f"blockvault-{state}", rate)
    often(made, row, "qcow2-snapshot", peer)
    page = headlines.page(made)
    column = "qcow2, just after a snapshot"
    assert f"ahead of {column} in {ahead} of 1 lines." in page
    table = page.partition("**The same disk with a history**")[2]
    assert column in table
    assert table.count("| Random write") == len(ours)
    assert f"| Random write after many snapshots | 40 | {bold(40.0 / peer)} |" in table
    assert "in the state that its column names" in table


def often(made: Results, row: Row, name: str, value: float) -> None:
    for _ in range(FEW):
        made.add(row, name, value)


@pytest.mark.parametrize(
    ("ours", "peer", "shown"),
    [
        ((2.0, 2.0, 2.0), (4.0, 4.0, 4.0), "**2.00**"),
        ((2.0, 2.0, 2.0), (4.0,), "2.00†"),
        ((1.0, 2.0, 5.0), (2.5, 3.0, 4.0), "1.50"),
        ((1.0, 2.0, 5.0), (3.0,), "1.50†"),
    ],
    ids=["sure", "once", "noise", "once, noise"],
)
def test_who_is_ahead_by_no_more_than_noise_is_not_ahead(
    ours: Sequence[float], peer: Sequence[float], shown: str
) -> None:
    made = Results(facts=facts())
    for name, values in (("blockvault", ours), ("borg-fixed", peer)):
        for value in values:
            made.add(TIME, name, value)
    page = headlines.page(made)
    (line,) = [line for line in page.splitlines() if line.startswith("| First imports of all")]
    assert line.split(" | ")[2] == shown
    few = " (1 †)" if "†" in shown else ""
    assert f"ahead of borg in {int('*' in shown)} of 1 lines{few}." in page


def bold(times: float) -> str:
    return f"**{digits(times)}**" if times > 1 else digits(times)


def test_of_a_family_the_best_counts_and_of_requests_more_is_better() -> None:
    made = results()
    often(made, TIME, "borg-default", 1.0)
    for name, rate in (("blockvault", 50.0), ("qcow2", 40.0), ("qcow2-zstd", 100.0)):
        often(made, Row("nbd/randread-16", "NBD", "Random read", "IOPS"), name, rate)
    page = headlines.page(made)
    assert "| First imports of all images | 2.00 s | 0.50 |" in page
    assert "| Random read | 50 | **1.25** | 0.50 | – |" in page


def test_the_first_table_takes_the_biggest_that_blockvault_has() -> None:
    made = results()
    for size in (1, 64, 1024):
        row = Row(f"latency/snapshot@{size}GiB", "l", f"{size} GiB", series="s", work=float(size))
        often(made, row, "btrfs", 1.0)
        if size < 1024:
            made.add(row, "blockvault", 2.0)
    assert "| 64 GiB | 2.00 s | – | – | 0.50 | – |" in headlines.page(made)


def test_each_group_in_which_there_are_peers_counts_in_the_verdict() -> None:
    """Also those in which blockvault is behind in most rows."""
    published = Results.load(PUBLISHED)
    families = [name for each in SECTIONS for names in each.families.values() for name in names]
    lines = [line for section in SECTIONS for line in section.lines]
    for group, rows in published.groups().items():
        measured = {name for row in rows for name in families if published.summary(row.key, name)}
        named = any(_is_about(line, row) for line in lines for row in rows)
        assert named or not measured, group


def _is_about(line: Line, row: Row) -> bool:
    return row.key.startswith(line.key) if line.key[-1] in "@/" else row.key == line.key


def test_who_has_just_had_a_snapshot_stands_beside_its_like() -> None:
    """But where the state that is read is of the past anyway."""
    for section in SECTIONS:
        late = [family for family in section.families if "just after a snapshot" in family]
        plain = [line.key for line in section.lines if line.ours == OURS]
        assert not late or all(key.endswith("-made") for key in plain), section.title


def test_every_table_of_a_page_is_whole() -> None:
    lines = report.page(results(), plots=[], folder="f", raw="r.json", progress="").splitlines()
    for above, below in itertools.pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert above.count("|") == below.count("|")


def test_compare_tells_better_from_worse_from_noise() -> None:
    verdicts = {
        ours: [
            change.verdict
            for change in compare.changes(results(), results(ours))
            if change.contender == "blockvault"
        ]
        for ours in (1.0, 2.01, 3.0)
    }
    assert verdicts == {1.0: ["better", ""], 2.01: ["", ""], 3.0: ["worse", ""]}
    assert "| First imports together | 2.00 s | 1.00 s | 0.50 × | better |" in compare.page(
        results(), results(1.0)
    )


def test_compare_tells_how_far_the_machine_moved() -> None:
    """By its peers alone: how a limit is worked out may have changed."""
    new = results(1.0)
    new.cells[TIME.key][LIMIT].samples = [Sample(0.01)]
    assert "1.00 × in the median of 1 rows" in compare.page(results(), new)


def test_table_columns() -> None:
    assert table(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | ---: |\n| x | 1 |"


def test_plots_are_drawn_for_what_was_measured(tmp_path: Path) -> None:
    made = results()
    for number, image in enumerate(("base", "v2", "b")):
        row = Row(f"size/{image}", "series", f"Store after {image}", "B")
        for name in ("blockvault", "borg-fixed", LIMIT):
            made.add(row, name, 1e6 * (number + 1))
    drawn = plots.draw(made, tmp_path)
    assert [plot.name for plot in drawn] == ["time-of-imports", "nbd-random-write", "store-size"]
    assert [plot.group for plot in drawn] == ["series", "NBD", "series"]
    files = [tmp_path / f"{plot.name}.svg" for plot in drawn]
    first = [file.read_bytes() for file in files]
    assert all(b"blockvault" in drawing for drawing in first)
    plots.draw(made, tmp_path)
    assert first == [file.read_bytes() for file in files], "the same figures, the same bytes"


def test_results_are_plain_json(tmp_path: Path) -> None:
    results().save(tmp_path / "r.json")
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["cells"]["import/all"]["blockvault"]["samples"][0]["settle"] == 0.1
