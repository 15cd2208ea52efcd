"""How cost grows with work: what is fixed, what each unit costs, when an exponent is given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.test_bench_figures import facts
from tools.bench import growing, report
from tools.bench.results import LIMIT, Results, Row, Unit
from tools.bench.stats import growth

WORKS = (1.0, 10.0, 100.0, 1000.0)
GIB = 1 << 30


@given(st.floats(0.001, 10), st.floats(1e-6, 10))
def test_growth_finds_the_line_it_was_given(fixed: float, each: float) -> None:
    found = growth([(work, fixed + each * work) for work in WORKS])
    assert found is not None
    costs = [fixed + each * work for work in WORKS]
    assert [found.fixed + found.each * work for work in WORKS] == pytest.approx(costs, rel=1e-6)
    assert found.missed == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("points", "fixed", "each", "missed"),
    [
        ([(1, 2.0), (2, 2.0), (3, 2.0)], 2.0, 0.0, 0.0),
        ([(1, 1.1), (2, 1.0), (3, 0.9)], 0.987, 0.0, 0.10),  # less work for more is no growth
        ([(1, 1.0), (2, 4.0), (3, 9.0)], 0.0, 1.346, 0.55),  # nor does it begin below zero
        ([(1, 1.0), (10, 10.0), (1000, 1050.0)], 0.0, 1.015, 0.033),  # not the biggest alone
    ],
)
def test_neither_part_is_negative_and_all_points_count(
    points: list[tuple[float, float]], fixed: float, each: float, missed: float
) -> None:
    found = growth(points)
    assert found is not None
    assert found == pytest.approx((fixed, each, missed), abs=0.005)


def test_growth_wants_three_points_of_different_work() -> None:
    assert growth([(1, 1), (2, 2)]) is None
    assert growth([(1, 1), (1, 2), (1, 3)]) is None
    assert growth([(1, 0), (2, 0), (3, 0)]) is None


@pytest.mark.parametrize(
    ("costs", "unit", "words"),
    [
        # the command's start hides what each unit costs: no exponent
        ((0.07783, 0.07806, 0.08036, 0.10336), "s", "77.8 ms + 25.6 µs × N"),
        ((0.08, 0.0801, 0.0799, 0.0802), "s", "80.0 ms, flat"),
        ((0.05, 0.5, 5.0, 50.0), "s", "50.0 ms × N, exponent 1.00"),
        ((0.0531, 0.5031, 5.0031, 50.0031), "s", "3.10 ms + 50.0 ms × N, exponent 0.99"),
        ((1.0, 100.0, 10_000.0, 1_000_000.0), "s", "~ 1.10 s × N, exponent 2.00"),
        ((2e6, 1e6, 2e6, 1e6), "B", "~ 1.20 MB, flat"),
        ((3.203e6, 3.23e6, 3.5e6, 6.2e6), "B", "3.20 MB + 3.00 kB × N"),
    ],
)
def test_words_name_both_parts_and_an_exponent_where_little_is_fixed(
    costs: tuple[float, ...], unit: Unit, words: str
) -> None:
    assert growing.words_of(list(zip(WORKS, costs, strict=True)), unit) == words


@pytest.mark.parametrize(
    ("titles", "title", "numbers"),
    [
        (
            ["Diff, 16 blocks on 16 GiB", "Diff, 4,096 blocks on 16 GiB"],
            "Diff, N blocks on 16 GiB",
            [16, 4096],
        ),
        (["Import, 1 GiB: memory", "Import, 64 GiB: memory"], "Import, N GiB: memory", [1, 64]),
        (["Read a", "Read b"], "Read a …, N: work", [5.0, 7.0]),
        (["Read 1 a", "Read 2 b"], "Read 1 a …, N: work", [5.0, 7.0]),
        (["Read", "Read 2"], "Read …, N: work", [5.0, 7.0]),
    ],
)
def test_a_series_is_called_by_its_titles(
    titles: list[str], title: str, numbers: list[float]
) -> None:
    rows = [
        Row(f"r@{work}", "g", words, series="r", work=work)
        for work, words in zip((5.0, 7.0), titles, strict=True)
    ]
    assert growing.series_of(rows) == (title, rows, numbers)


def test_the_page_has_a_table_for_each_group_and_no_keys() -> None:
    made = Results(facts=facts())
    for group, start in (("latency", 0.0803), ("without start", 0.0104)):
        for size in (1, 64, 1024):
            key = f"{group}/snap@{size}GiB"
            row = Row(
                key, group, f"Snap, {size:,} GiB disk", series=f"{group}/snap", work=size * GIB
            )
            made.add(row, "blockvault", start + 0.0025 * size)
            made.add(row, LIMIT, 1.0)
            if size > 1:
                made.add(row, "borg-fixed", 1.0)
    text = report.page(made, plots=[], folder="", raw="", progress="").partition("## How cost")[2]
    text = text.partition("## Method")[0]
    line = "|  | blockvault |\n| --- | ---: |\n| Snap, N GiB disk | {} ms + 2.50 ms × N |"
    assert f"**Latency**\n\n{line.format('80.3')}" in text
    assert f"**Without start**\n\n{line.format('10.4')}" in text
    assert "snap@" not in text
    assert "latency/snap" not in text


def test_a_page_without_series_has_no_such_part() -> None:
    assert growing.page(Results(facts=facts())) == ""
