"""The overlay against a dict of blocks, and the replay of rows."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.ids import ZERO_ID, object_id
from blockvault.model import overlay as overlay_module
from blockvault.model import tree
from blockvault.model.events import BARRIER, CHECKPOINTED, TRIMMED, WROTE, ZEROED
from blockvault.model.overlay import Overlay, replay
from blockvault.model.update import update

NBLOCKS = 300
IDS = [object_id(bytes([n])) for n in range(9)] + [ZERO_ID]


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[int, bytes | int]]:
    """(first block, ids written or number of blocks cleared)."""
    rng = random.Random(draw(st.integers(0, 1 << 30)))
    out: list[tuple[int, bytes | int]] = []
    for _ in range(draw(st.integers(0, 25))):
        first = rng.randrange(NBLOCKS)
        count = min(rng.choice([1, 2, 10, 200]), NBLOCKS - first)
        wrote = rng.random() < 0.6
        out.append((first, b"".join(rng.choices(IDS, k=count)) if wrote else count))
    return out


def play(todo: list[tuple[int, bytes | int]]) -> tuple[Overlay, dict[int, bytes]]:
    overlay, plain = Overlay(), {}
    for first, what in todo:
        if isinstance(what, int):
            overlay.clear(first, what)
            plain.update(dict.fromkeys(range(first, first + what), ZERO_ID))
        else:
            overlay.write(first, what)
            plain.update(enumerate(tree.split_ids(what), first))
    return overlay, plain


@pytest.mark.parametrize("long_run", [1, 8, 1024])
@given(steps(), st.integers(0, NBLOCKS), st.integers(0, NBLOCKS))
def test_reads_what_was_written_last(
    long_run: int, todo: list[tuple[int, bytes | int]], start: int, stop: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay_module, "LONG_RUN", long_run)
        overlay, plain = play(todo)
    assert [overlay.get(block) for block in range(NBLOCKS)] == [
        plain.get(block) for block in range(NBLOCKS)
    ]
    assert overlay.lookup(start, stop) == [plain.get(block) for block in range(start, stop)]
    if start < stop and not overlay.touches(start, stop):
        assert not any(block in plain for block in range(start, stop))
    covered: dict[int, bool] = {}
    last = start
    for run in overlay.runs(start, stop):
        assert last <= run.start < run.stop <= stop
        last = run.stop
        covered.update(dict.fromkeys(range(run.start, run.stop), run.zero))
    assert covered == {b: plain[b] == ZERO_ID for b in range(start, stop) if b in plain}


@pytest.mark.parametrize("long_run", [1, 8, 1024])
@given(steps())
def test_folds_into_the_tree_below(long_run: int, todo: list[tuple[int, bytes | int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay_module, "LONG_RUN", long_run)
        overlay, plain = play(todo)
    nodes = tree.Scratch()
    below = {b: IDS[b % 9] for b in range(0, NBLOCKS, 3)}
    root = update(nodes, nodes, ZERO_ID, 2, below)
    expected = update(nodes, nodes, ZERO_ID, 2, below | plain)
    assert overlay.fold(nodes, nodes, root, 2) == expected


def test_what_is_cleared_elsewhere_costs_a_read_nothing() -> None:
    overlay = Overlay()
    overlay.clear(1 << 20, 1 << 20)
    overlay.write(1 << 19, IDS[0])
    assert not overlay.touches(0, 64)
    assert overlay.touches((1 << 20) - 1, (1 << 20) + 1)
    assert overlay.touches((1 << 21) - 1, 1 << 21)
    assert not overlay.touches(1 << 21, 1 << 22)


def test_clearing_a_terabyte_is_one_entry_and_drops_what_was_below() -> None:
    overlay = Overlay()
    overlay.write(5, IDS[0])
    overlay.write(1 << 29, IDS[1])
    overlay.clear(0, 1 << 28)
    assert (overlay.blocks, overlay.cleared) == ({1 << 29: IDS[1]}, [(0, 1 << 28)])
    overlay.clear(1 << 28, 1 << 28)
    assert overlay.cleared == [(0, 1 << 29)]
    overlay.write(7, IDS[2])
    assert overlay.lookup(6, 9) == [ZERO_ID, IDS[2], ZERO_ID]
    assert len(overlay) == 3


def test_replay_takes_the_data_rows_of_one_branch() -> None:
    overlays: dict[str, Overlay] = {}
    rows = [
        (WROTE, 0, 2, "vda", 4096, 4096, IDS[0]),
        (WROTE, 0, 3, "vda", 0, 4096, IDS[1]),
        (WROTE, 1, 2, "vdb", 100, 8192, IDS[1] + IDS[2] + IDS[3]),
        (BARRIER, 1, 2),
        (CHECKPOINTED, 1, 2, ()),
        (ZEROED, 2, 2, "vdb", 4096, 4096),
        (TRIMMED, 2, 2, "vda", 8192, 100),
    ]
    replay(overlays, rows, 2, 4096)
    assert {name: overlay.blocks for name, overlay in overlays.items()} == {
        "vda": {1: IDS[0], 2: ZERO_ID},
        "vdb": {0: IDS[1], 1: ZERO_ID, 2: IDS[3]},
    }
