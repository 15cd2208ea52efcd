"""The tree against a plain dict of blocks: every root is compared with one built afresh."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockvault.errors import BadRequest, Damaged
from blockvault.ids import ZERO_ID, object_id
from blockvault.model import tree
from blockvault.model.builder import Builder, EarlierLeaves
from blockvault.model.diff import Side, changed_blocks
from blockvault.model.update import resize, update

SIZES = st.sampled_from([1, 31, 32, 33, 100, 1023, 1024, 1025, 5000, 32768, 32769, 2_000_000])


def block(value: int) -> bytes:
    return object_id(value.to_bytes(8, "little"))


def plain_root(content: dict[int, bytes], height: int) -> bytes:
    """The root by its definition, without any of the code under test."""
    level = {b: oid for b, oid in content.items() if oid != ZERO_ID}
    for _ in range(height):
        nodes: dict[int, bytearray] = {}
        for at, oid in level.items():
            node = nodes.setdefault(at // 32, bytearray(1024))
            node[at % 32 * 32 : at % 32 * 32 + 32] = oid
        level = {at: object_id(bytes(node)) for at, node in nodes.items()}
    return level.get(0, ZERO_ID)


def make(content: dict[int, bytes], nblocks: int) -> tuple[tree.Scratch, bytes]:
    nodes = tree.Scratch()
    return nodes, update(nodes, nodes, ZERO_ID, tree.depth(nblocks), content)


@st.composite
def contents(draw: st.DrawFn, nblocks: int) -> dict[int, bytes]:
    seed, count = draw(st.integers(0, 1 << 30)), draw(st.sampled_from([0, 1, 3, 40, 200]))
    rng = random.Random(seed)
    near = rng.randrange(nblocks)
    spread = rng.choice([4, 64, 2000, nblocks])
    return {
        min(nblocks - 1, near + rng.randrange(spread)): rng.choice(
            [block(rng.randrange(50)), ZERO_ID]
        )
        for _ in range(count)
    }


@pytest.mark.parametrize(
    ("nblocks", "height"),
    [(0, 1), (1, 1), (32, 1), (33, 2), (1024, 2), (1025, 3), (32768, 3), (32769, 4), (1 << 40, 8)],
)
def test_depth_is_the_smallest_that_holds_all_blocks(nblocks: int, height: int) -> None:
    assert tree.depth(nblocks) == height


@pytest.mark.parametrize(("size", "blocks"), [(0, 0), (1, 1), (4096, 1), (4097, 2), (8192, 2)])
def test_blocks_in_counts_a_partial_last_block(size: int, blocks: int) -> None:
    assert tree.blocks_in(size, 4096) == blocks


@given(st.data(), SIZES)
def test_updates_give_the_root_of_the_content(data: st.DataObject, nblocks: int) -> None:
    height = tree.depth(nblocks)
    nodes, root, content = tree.Scratch(), ZERO_ID, {}
    for _ in range(3):
        changes = data.draw(contents(nblocks))
        bounds = st.integers(0, nblocks)
        cleared = [tuple(sorted((data.draw(bounds), data.draw(bounds)))) for _ in range(2)]
        content = {
            b: oid for b, oid in content.items() if not any(lo <= b < hi for lo, hi in cleared)
        } | changes
        root = update(nodes, nodes, root, height, changes, cleared)
        assert root == plain_root(content, height)
    for wanted in content:
        found = tree.lookup_range(nodes, root, height, wanted, 1)
        assert found == content[wanted]
    first = data.draw(st.integers(0, nblocks - 1))
    count = data.draw(st.integers(0, min(3000, nblocks - first)))
    ids = tree.split_ids(tree.lookup_range(nodes, root, height, first, count))
    assert ids == [content.get(b, ZERO_ID) for b in range(first, first + count)]


@given(st.data(), SIZES)
def test_leaves_yields_the_range_in_order_without_zeros(data: st.DataObject, nblocks: int) -> None:
    content = data.draw(contents(nblocks))
    nodes, root = make(content, nblocks)
    start = data.draw(st.integers(0, nblocks))
    stop = data.draw(st.integers(start, nblocks))
    expected = sorted(
        {b // 32 * 32 for b, oid in content.items() if oid != ZERO_ID}
        & set(range(start // 32 * 32, stop if stop > start else 0, 32))
    )
    got = list(tree.leaves(nodes, root, tree.depth(nblocks), start, stop))
    assert [first for first, _ in got] == expected
    for first, leaf in got:
        assert tree.children(leaf) == tuple(content.get(first + i, ZERO_ID) for i in range(32))


@given(st.data())
def test_ids_of_leaves_are_those_of_the_leaves(data: st.DataObject) -> None:
    nblocks = data.draw(SIZES)
    nodes, root = make(data.draw(contents(nblocks)), nblocks)
    height = tree.depth(nblocks)
    leaves = [(first, object_id(leaf)) for first, leaf in tree.leaves(nodes, root, height)]
    known = {oid for _, oid in leaves} if height > 1 else set()
    nodes.added = {oid: node for oid, node in nodes.added.items() if oid not in known}
    assert list(tree.leaf_ids(nodes, root, height)) == leaves, "and no leaf is asked for"
    start = data.draw(st.integers(0, nblocks))
    stop = data.draw(st.integers(start, nblocks + 40))
    within = [(first, oid) for first, oid in leaves if first + 32 > start and first < stop]
    if start == stop:
        within = []
    assert list(tree.leaf_ids(nodes, root, height, start, stop)) == within


@given(st.data(), SIZES, SIZES)
def test_resize_equals_a_tree_built_at_the_new_size(
    data: st.DataObject, old: int, new: int
) -> None:
    content = data.draw(contents(old))
    nodes, root = make(content, old)
    kept = {b: oid for b, oid in content.items() if b < new}
    assert resize(nodes, nodes, root, old, new) == plain_root(kept, tree.depth(new))


@given(st.data(), SIZES)
def test_builder_gives_the_same_root(data: st.DataObject, nblocks: int) -> None:
    content = data.draw(contents(nblocks))
    nodes = tree.Scratch()
    builder = Builder(nodes, nblocks)
    for first in sorted({b // 32 * 32 for b in content}):
        builder.skip(first // 32 - builder.done)
        leaf = b"".join(content.get(b, ZERO_ID) for b in range(first, min(first + 32, nblocks)))
        if len(leaf) == tree.NODE_SIZE and data.draw(st.booleans()):
            builder.put(tree.store(nodes, leaf))
        else:
            builder.add(leaf)
    assert builder.finish() == plain_root(content, tree.depth(nblocks))


@given(st.data(), SIZES)
def test_earlier_leaves_are_found_in_ascending_order(data: st.DataObject, nblocks: int) -> None:
    content = data.draw(contents(nblocks))
    nodes, root = make(content, nblocks)
    earlier = EarlierLeaves(nodes, root, nblocks)
    stop = nblocks // 32 + 3  # and beyond the end, where a later state is longer
    at = 0
    while at < stop:
        first = data.draw(st.integers(at, stop))
        at = data.draw(st.integers(first, stop)) + 1
        for leaf, oid in zip(range(first, at), earlier.ids(range(first, at)), strict=True):
            blocks = b"".join(content.get(leaf * 32 + n, ZERO_ID) for n in range(32))
            assert oid == (object_id(blocks) if any(blocks) else ZERO_ID)


def test_of_earlier_leaves_behind_a_lost_node_nothing_is_known() -> None:
    content = {b: block(b) for b in range(0, 3000, 32)}
    nodes, root = make(content, 3000)
    earlier = EarlierLeaves(nodes, root, 3000)
    found = earlier.ids(range(94))
    assert ZERO_ID not in found
    second = next(oid for oid, node in nodes.added.items() if found[40] in tree.children(node))
    whole = nodes.added.pop(second)
    assert set(EarlierLeaves(nodes, root, 3000).ids(range(94))) == {ZERO_ID}
    nodes.added[second] = whole[:-1]
    with pytest.raises(Damaged, match="not a tree node"):
        EarlierLeaves(nodes, root, 3000).ids(range(94))


def test_a_rewrite_with_equal_ids_stores_nothing() -> None:
    content = {b: block(b) for b in range(0, 5000, 7)}
    nodes, root = make(content, 5000)
    sink = tree.Scratch(nodes)
    assert update(nodes, sink, root, 3, content) == root
    assert sink.added == {}


def test_an_update_reads_only_the_path_and_clears_without_reading() -> None:
    nblocks = 1 << 20
    nodes, root = make({b: block(b) for b in range(0, nblocks, 512)}, nblocks)
    asked = Counting(nodes)
    update(asked, nodes, root, 4, {777_728: block(1)})
    assert (asked.ids, asked.calls) == (4, 4)
    asked = Counting(nodes)
    assert update(asked, nodes, root, 4, {}, [(0, nblocks)]) == ZERO_ID
    assert asked.ids == 0
    update(asked, nodes, root, 4, {}, [(1, nblocks - 1)])
    assert asked.ids <= 7


class Counting:
    def __init__(self, nodes: tree.NodeSource) -> None:
        self.nodes, self.calls, self.ids = nodes, 0, 0

    def get_many(self, ids: list[bytes], /) -> dict[bytes, bytes]:
        assert ZERO_ID not in ids
        assert len(set(ids)) == len(ids)
        self.calls += 1
        self.ids += len(ids)
        return dict(self.nodes.get_many(ids))


def test_reads_are_batched_by_level() -> None:
    nblocks = 1 << 20
    nodes, root = make({b: block(b) for b in range(0, nblocks, 512)}, nblocks)
    asked = Counting(nodes)
    tree.lookup_range(asked, root, 4, 0, nblocks)
    assert asked.calls == 4
    asked = Counting(nodes)
    assert len(list(tree.leaves(asked, root, 4))) == 2048
    assert asked.calls <= 5


def test_skipping_a_huge_hole_is_cheap_and_exact() -> None:
    nblocks = 1 << 38  # a petabyte of 4 KiB blocks
    nodes = tree.Scratch()
    builder = Builder(nodes, nblocks)
    builder.skip(123_456_789)
    builder.add(block(1) * 32)
    content = {123_456_789 * 32 + i: block(1) for i in range(32)}
    assert builder.finish() == plain_root(content, tree.depth(nblocks))
    assert len(nodes.added) == 8


@pytest.mark.parametrize("leaf", [b"x", bytes(1025), bytes(2048), bytes(992)])
def test_builder_refuses_a_leaf_of_the_wrong_length(leaf: bytes) -> None:
    with pytest.raises(BadRequest):
        Builder(tree.Scratch(), 64).add(leaf)


def test_builder_refuses_more_leaves_than_the_volume_has() -> None:
    builder = Builder(tree.Scratch(), 33)
    builder.skip(2)
    with pytest.raises(BadRequest):
        builder.add(bytes(1024))


@pytest.mark.parametrize("blocks", [{-1: ZERO_ID}, {1024: ZERO_ID}])
def test_blocks_outside_of_the_tree_are_refused(blocks: dict[int, bytes]) -> None:
    nodes = tree.Scratch()
    with pytest.raises(BadRequest):
        update(nodes, nodes, ZERO_ID, 2, blocks)
    with pytest.raises(BadRequest):
        tree.lookup_range(nodes, ZERO_ID, 2, next(iter(blocks)), 2)


def test_reachable_yields_each_node_once_parents_first() -> None:
    content = {b: block(b % 40) for b in range(0, 3000, 3)}
    nodes, root = make(content, 3000)
    other = update(nodes, nodes, root, 3, {5: block(99)})
    seen: set[bytes] = set()
    got = list(tree.reachable(nodes, [(root, 3), (root, 3), (other, 3), (ZERO_ID, 2)], seen))
    assert len({oid for _, oid, _ in got}) == len(got) == len(seen)
    assert {oid for _, oid, _ in got} == set(nodes.added)
    order = {oid: at for at, (_, oid, _) in enumerate(got)}
    for height, oid, node in got:
        assert nodes.added[oid] == node
        if height > 1:
            # A shared child may come before a later parent, never before its first.
            parents = [o for h, o, n in got if h == height + 1 and oid in tree.children(n)]
            assert height == 3 or min(order[o] for o in parents) < order[oid]
    assert list(tree.reachable(nodes, [(root, 3), (other, 3)], seen)) == []


def test_a_missing_or_short_node_is_damage() -> None:
    nodes, root = make({5: block(5)}, 2000)
    kept = dict(nodes.added)
    nodes.added = {oid: node for oid, node in kept.items() if oid != root}
    with pytest.raises(Damaged, match="missing"):
        tree.lookup_range(nodes, root, 3, 0, 10)
    nodes.added = kept | {root: b"short"}
    with pytest.raises(Damaged, match="not a tree node"):
        tree.lookup_range(nodes, root, 3, 0, 10)


@settings(max_examples=30)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_batches_smaller_than_the_tree_change_nothing(seed: int, nblocks: int) -> None:
    rng = random.Random(seed)
    content = {rng.randrange(nblocks): block(rng.randrange(99)) for _ in range(300)}
    height = tree.depth(nblocks)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("tree", "update", "diff"):
            patch.setattr(f"blockvault.model.{module}.BATCH", 3)
        nodes, root = make(content, nblocks)
        assert root == plain_root(content, height)
        firsts = [first for first, _ in tree.leaves(nodes, root, height)]
        assert firsts == sorted({b // 32 * 32 for b in content})
        assert len(list(tree.reachable(nodes, [(root, height)], set()))) == len(nodes.added)
        sides = Side(nblocks * 512, root), Side(nblocks * 512, ZERO_ID)
        runs = changed_blocks(nodes, *sides, 512)
        assert [b for run in runs for b in range(run.start, run.stop)] == sorted(content)
