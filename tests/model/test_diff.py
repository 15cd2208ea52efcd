"""The diff against comparing every block, and its cost."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from blockvault.ids import ZERO_ID, object_id
from blockvault.model import diff, tree
from blockvault.model.diff import Side
from blockvault.model.overlay import Overlay
from blockvault.model.update import update

BS = 4096
SIZES = [0, 1, 4096, 4097, 32 * BS, 33 * BS, 1000 * BS - 5, 1025 * BS, 40_000 * BS]


def make(nodes: tree.Scratch, size: int, rng: random.Random) -> tuple[Side, dict[int, bytes]]:
    """A random state of few distinct blocks, partly in an overlay."""
    nblocks = tree.blocks_in(size, BS)
    content: dict[int, bytes] = {}
    for _ in range(min(nblocks, 60)):
        at = min(nblocks - 1, rng.randrange(rng.choice([nblocks, 40])))
        content[at] = rng.choice([object_id(b"a"), object_id(b"b"), ZERO_ID])
    root = update(nodes, nodes, ZERO_ID, tree.depth(nblocks), content)
    if not nblocks or rng.random() < 0.3:
        return Side(size, root), content
    overlay = Overlay()
    for _ in range(rng.randrange(9)):
        at = rng.randrange(nblocks)
        if rng.random() < 0.5:
            overlay.write(at, object_id(b"b"))
            content[at] = object_id(b"b")
        else:
            count = min(nblocks - at, rng.choice([1, 1500]))
            overlay.clear(at, count)
            content = {b: oid for b, oid in content.items() if not at <= b < at + count}
    return Side(size, root, overlay), content


@given(st.integers(0, 1 << 40), st.sampled_from(SIZES), st.sampled_from(SIZES))
def test_finds_exactly_the_blocks_that_differ(seed: int, size_a: int, size_b: int) -> None:
    rng = random.Random(seed)
    nodes = tree.Scratch()
    (a, in_a), (b, in_b) = make(nodes, size_a, rng), make(nodes, size_b, rng)
    expected = [
        at
        for at in sorted(in_a.keys() | in_b.keys())
        if in_a.get(at, ZERO_ID) != in_b.get(at, ZERO_ID)
    ]
    before = dict(nodes.added)
    runs = list(diff.changed_blocks(nodes, a, b, BS))
    assert [at for run in runs for at in range(run.start, run.stop)] == expected
    assert all(x.stop < y.start for x, y in pairwise(runs))
    assert nodes.added == before, "a diff stores nothing"
    end = max(size_a, size_b)
    spans = list(diff.changed_bytes(nodes, a, b, BS))
    assert spans == [(r.start * BS, min(r.stop * BS, end) - r.start * BS) for r in runs]
    assert all(length > 0 for _, length in spans)


class Counting:
    def __init__(self, nodes: tree.NodeSource) -> None:
        self.nodes, self.ids = nodes, 0

    def get_many(self, ids: list[bytes], /) -> dict[bytes, bytes]:
        self.ids += len(ids)
        return dict(self.nodes.get_many(ids))


def test_costs_what_changed_not_what_there_is() -> None:
    nodes = tree.Scratch()
    nblocks = 1 << 18
    content = {b: object_id(b"%d" % b) for b in range(0, nblocks, 8)}
    root = update(nodes, nodes, ZERO_ID, 4, content)
    later = update(nodes, nodes, root, 4, {77: object_id(b"x"), 200_000: ZERO_ID})
    a, b = Side(nblocks * BS, root), Side(nblocks * BS, later)
    asked = Counting(nodes)
    assert [tuple(run)[:2] for run in diff.changed_blocks(asked, a, b, BS)] == [
        (77, 78),
        (200_000, 200_001),
    ]
    assert asked.ids <= 2 * (1 + 2 + 2 + 2)
    asked = Counting(nodes)
    assert list(diff.changed_blocks(asked, a, a, BS)) == []
    assert asked.ids == 0


def test_is_streamed() -> None:
    nodes = tree.Scratch()
    nblocks = 1 << 18
    root = update(nodes, nodes, ZERO_ID, 4, {b: object_id(b"%d" % b) for b in range(0, nblocks, 8)})
    asked = Counting(nodes)
    size = nblocks * BS
    first = next(diff.changed_blocks(asked, Side(size, ZERO_ID), Side(size, root), BS))
    assert first[:2] == (0, 1)
    assert asked.ids <= 1 + 8 + 256 + tree.BATCH
