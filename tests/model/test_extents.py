"""Runs against sets of points: what is simple to say about single points holds for runs."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.ids import ZERO_ID, object_id
from blockvault.model import extents, tree
from blockvault.model.extents import Run
from blockvault.model.update import update

END = 60


@st.composite
def run_lists(draw: st.DrawFn) -> list[Run]:
    """Sorted, disjoint, non-empty runs, with gaps or without."""
    cuts = sorted(draw(st.sets(st.integers(0, END), max_size=16)))
    runs = [Run(a, b, draw(st.booleans())) for a, b in pairwise(cuts)]
    return [run for run in runs if draw(st.integers(0, 3))]


def points(runs: object) -> dict[int, bool]:
    """Each point covered and its kind; fails when a point is covered twice or out of order."""
    found: dict[int, bool] = {}
    last = -1
    for start, stop, zero in runs:  # type: ignore[attr-defined]
        assert last <= start < stop
        last = stop
        found.update(dict.fromkeys(range(start, stop), zero))
    return found


@given(run_lists())
def test_merged_says_the_same_in_the_fewest_runs(runs: list[Run]) -> None:
    got = list(extents.merged(runs))
    assert points(got) == points(runs)
    for a, b in pairwise(got):
        assert a.stop < b.start or a.zero != b.zero


@given(run_lists(), st.integers(0, END), st.integers(0, END))
def test_clipped_keeps_what_lies_inside(runs: list[Run], start: int, stop: int) -> None:
    expected = {at: zero for at, zero in points(runs).items() if start <= at < stop}
    assert points(extents.clipped(runs, start, stop)) == expected


@given(run_lists(), run_lists())
def test_subtracted_keeps_what_no_hole_covers(runs: list[Run], holes: list[Run]) -> None:
    covered = points(holes)
    expected = {at: zero for at, zero in points(runs).items() if at not in covered}
    assert points(extents.subtracted(runs, holes)) == expected


@given(run_lists(), run_lists())
def test_overlaid_lets_the_upper_one_win(lower: list[Run], upper: list[Run]) -> None:
    assert points(extents.overlaid(iter(lower), iter(upper))) == points(lower) | points(upper)


def test_algebra_is_lazy() -> None:
    def endless() -> object:
        at = 0
        while True:
            yield Run(at, at + 1, False)
            at += 2

    layers = extents.overlaid(endless(), (Run(r.start + 1, r.stop + 1, True) for r in endless()))
    first = next(iter(extents.merged(extents.clipped(layers, 5, 1 << 60))))
    assert first == Run(5, 6, True)


@given(
    st.dictionaries(st.integers(0, 99), st.booleans(), max_size=60),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_of_tree_covers_the_range_with_data_and_zeros(
    written: dict[int, bool], start: int, length: int
) -> None:
    stop = min(100, start + length)
    content = {b: object_id(b"%d" % b) if data else ZERO_ID for b, data in written.items()}
    nodes = tree.Scratch()
    root = update(nodes, nodes, ZERO_ID, 2, content)
    got = points(extents.of_tree(nodes, root, 2, start, stop))
    assert got == {b: not written.get(b, False) for b in range(start, stop)}


@given(run_lists())
def test_of_state_puts_the_overlay_over_the_tree(upper: list[Run]) -> None:
    nodes = tree.Scratch()
    root = update(nodes, nodes, ZERO_ID, 2, {b: object_id(b"x") for b in range(10, 40)})
    got = list(extents.of_state(nodes, root, 2, upper, 0, END))
    below = {at: not 10 <= at < 40 for at in range(END)}
    assert points(got) == below | points(upper)
    assert got == list(extents.merged(got))


@pytest.mark.parametrize("nblocks", [1 << 20, 1 << 38])
def test_a_huge_volume_of_zeros_is_one_run_without_reading(nblocks: int) -> None:
    height = tree.depth(nblocks)
    got = list(extents.of_state(tree.Scratch(), ZERO_ID, height, [], 0, nblocks))
    assert got == [Run(0, nblocks, True)]


@pytest.mark.parametrize(("start", "stop"), [(0, 100), (5, 60), (32, 64), (40, 41), (95, 96)])
def test_of_tree_cuts_full_leaves_at_the_range(start: int, stop: int) -> None:
    nodes = tree.Scratch()
    root = update(nodes, nodes, ZERO_ID, 2, {b: object_id(b"x") for b in range(96)})
    got = points(extents.of_tree(nodes, root, 2, start, stop))
    assert got == {b: b >= 96 for b in range(start, stop)}
