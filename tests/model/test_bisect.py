"""The search against the plainest oracle: points are bad from some point on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.errors import BadRequest
from blockvault.model.bisect import Search, Verdict, steps

GOOD, BAD, SKIP = Verdict


def searched(points: list[int], first_bad: int, skips: set[int]) -> tuple[Search, int]:
    """The end of a search with good end 0 and bad end 1000, and how many points were judged."""
    search, judged = Search(0, 1000), 0
    while (point := search.next(points)) is not None:
        assert point in search.untried(points)
        verdict = SKIP if point in skips else BAD if point >= first_bad else GOOD
        search, judged = search.marked(point, verdict), judged + 1
    return search, judged


POINTS = st.lists(st.integers(-20, 1020), max_size=80)


@given(POINTS, st.integers(1, 1000))
def test_without_skips_the_first_bad_point_is_found_in_logarithmic_steps(points, first_bad) -> None:
    inside = sorted({point for point in points if 0 < point < 1000})
    search, judged = searched(points, first_bad, set())
    assert search.bad == next((p for p in inside if p >= first_bad), 1000)
    assert search.good == max((p for p in inside if p < first_bad), default=0)
    assert judged <= steps(len(inside))


@given(POINTS, st.integers(1, 1000), st.data())
def test_with_skips_only_skipped_points_are_left(points, first_bad, data) -> None:
    skips = set(data.draw(st.lists(st.sampled_from(points)))) if points else set()
    search, judged = searched(points, first_bad, skips)
    assert search.good < first_bad
    assert search.bad >= first_bad
    assert set(search.within(points)) <= skips
    assert judged <= len(set(points))


def test_a_cluster_in_the_middle_is_left_behind() -> None:
    """Half of 900 points cannot be judged: halving towards the cluster would take hundreds."""
    for first_bad in (3, 200, 800, 890):
        search, judged = searched(list(range(1, 901)), first_bad, set(range(230, 680)))
        assert (search.good, search.bad) == (first_bad - 1, first_bad)
        assert judged < 30


@pytest.mark.parametrize(
    ("point", "verdict", "after"),
    [
        (50, GOOD, Search(50, 90)),
        (50, BAD, Search(10, 50)),
        (50, SKIP, Search(10, 90, frozenset({50}))),
        (10, GOOD, Search(10, 90)),
        (5, GOOD, Search(10, 90)),
        (90, BAD, Search(10, 90)),
        (95, BAD, Search(10, 90)),
        (90, GOOD, None),
        (10, BAD, None),
    ],
)
def test_verdicts(point, verdict, after) -> None:
    search = Search(10, 90)
    if after is None:
        with pytest.raises(BadRequest):
            search.marked(point, verdict)
    else:
        assert search.marked(point, verdict) == after


def test_good_comes_before_bad() -> None:
    for good, bad in ((5, 5), (6, 5)):
        with pytest.raises(BadRequest):
            Search(good, bad)
