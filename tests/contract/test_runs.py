"""Leaves read as runs: right wherever their blocks lie, and never unproved."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.ids import ZERO_ID, object_id
from blockvault.store import runs, tables
from blockvault.store.memory import MemoryStore
from blockvault.store.objects import ObjectReader
from blockvault.store.runs import Leaf, Trail
from blockvault.store.tables import location
from blockvault.store.types import Store
from tests.store.material import OPTIONS, block, framed, noise

SIZE = 4096
ZEROS = bytes(SIZE)


def leaf_of(datas: list[bytes]) -> Leaf:
    return [ZERO_ID if data == ZEROS else object_id(data) for data in datas]


def keep(store: Store, leaves: list[list[bytes]], frames: list[list[bytes]]) -> None:
    """Store the frames as they are, and what the whole leaves hash to."""
    with store.write() as writer:
        writer.add_frames([framed(frame) for frame in frames])
        for datas in leaves:
            run = object_id(b"".join(datas))
            writer.put(tables.RUNS, object_id(b"".join(leaf_of(datas))), run)


def read(store: Store, *leaves: list[bytes]) -> list[bytes | None]:
    found = ObjectReader(store).get_runs([leaf_of(datas) for datas in leaves], SIZE)
    return [None if pieces is None else b"".join(pieces) for pieces in found]


@pytest.mark.parametrize("make_block", [block, noise], ids=["compressed", "raw"])
def test_a_run_in_one_frame_or_in_several(store: Store, make_block: Callable[[int], bytes]) -> None:
    first, second = ([make_block(n) for n in range(at, at + 32)] for at in (0, 32))
    keep(store, [first, second], [[*first, *second[:7]], second[7:8], second[8:]])
    assert read(store, first, second) == [b"".join(first), b"".join(second)]


def test_zeros_anywhere_in_a_leaf(store: Store) -> None:
    datas = [ZEROS if n in {0, 1, 13, 31} else block(n) for n in range(32)]
    keep(store, [datas], [[data for data in datas if data != ZEROS]])
    assert read(store, datas, [ZEROS] * 32) == [b"".join(datas), bytes(32 * SIZE)]


def test_blocks_that_lie_in_another_order(store: Store) -> None:
    datas = [block(n) for n in range(32)]
    mixed = random.Random(1).sample(datas, 32)
    keep(store, [datas], [mixed[:9], mixed[9:]])
    assert read(store, datas) == [b"".join(datas)]


def test_blocks_twice_in_a_leaf(store: Store) -> None:
    datas = [block(n // 2) for n in range(32)]
    keep(store, [datas], [[block(n) for n in range(16)]])
    assert read(store, datas) == [b"".join(datas)]


def test_what_is_not_known_or_not_there_is_for_others_to_read(store: Store) -> None:
    known, lost, unheard = ([block(n) for n in range(at, at + 32)] for at in (0, 32, 64))
    keep(store, [known, lost], [known, lost[:20], unheard])
    assert read(store, lost, known, unheard) == [None, b"".join(known), None]


def test_a_run_that_is_not_what_was_stored_is_not_returned(store: Store) -> None:
    datas = [block(n) for n in range(32)]
    keep(store, [], [datas])
    with store.write() as writer:
        writer.put(tables.RUNS, object_id(b"".join(leaf_of(datas))), object_id(b"other"))
    assert read(store, datas) == [None]


def in_order(store: Store) -> list[list[bytes]]:
    """Five leaves, one behind the other in frames of 20 blocks, with a zero in each."""
    leaves = [[ZEROS if n == 7 else block(at + n) for n in range(32)] for at in range(0, 160, 32)]
    datas = [data for leaf in leaves for data in leaf if data != ZEROS]
    keep(store, leaves, [datas[at : at + 20] for at in range(0, len(datas), 20)])
    return leaves


def test_who_reads_on_asks_the_index_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves, reader, trail = in_order(store), ObjectReader(store), Trail()
    asked: list[object] = []
    located = runs._located
    monkeypatch.setattr(runs, "_located", lambda *args: asked.append(args) or located(*args))
    for at in (0, 1, 3):
        found = reader.get_runs([leaf_of(leaf) for leaf in leaves[at : at + 2]], SIZE, trail)
        assert [b"".join(pieces or ()) for pieces in found] == [
            b"".join(leaf) for leaf in leaves[at : at + 2]
        ]
        assert len(asked) == {0: 1, 1: 2, 3: 2}[at], "leaf 1 came twice, leaf 3 behind leaf 2"


@given(frame=st.integers(0, 12), slot=st.integers(0, 40), first=st.integers(0, 4))
def test_a_trail_that_leads_astray_changes_nothing(frame: int, slot: int, first: int) -> None:
    with MemoryStore(OPTIONS) as store:
        leaves, trail = in_order(store), Trail()
        trail.place = location(frame, slot)
        found = ObjectReader(store).get_runs(
            [leaf_of(leaf) for leaf in leaves[first:]], SIZE, trail
        )
        assert [b"".join(pieces or ()) for pieces in found] == [
            b"".join(leaf) for leaf in leaves[first:]
        ]
