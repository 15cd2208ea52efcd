"""Blocks of a disk that was rewritten here and there: counted, proved, and looked up else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.errors import Damaged
from blockvault.ids import ZERO_ID, object_id
from blockvault.store import leaves, tables
from blockvault.store.memory import MemoryStore
from blockvault.store.objects import ObjectReader
from blockvault.store.runs import Trail
from blockvault.store.tables import location
from blockvault.store.types import Store
from tests.store.material import OPTIONS, block, framed, noise

SIZE = 4096
Disk = list[bytes | None]
"""None stands for zeros."""


def keep(store: Store, frames: Sequence[Sequence[bytes]]) -> None:
    with store.write() as writer:
        writer.add_frames([framed(frame) for frame in frames])


def rewritten(store: Store, old: int, rewrites: dict[int, int | None], frame: int = 20) -> Disk:
    """A disk of ``old`` blocks in order; those of ``rewrites`` are others by now, stored apart."""
    disk: Disk = [block(number) for number in range(old)]
    keep(
        store, [[block(n) for n in range(at, min(at + frame, old))] for at in range(0, old, frame)]
    )
    new = [block(1000 + seed) for seed in set(rewrites.values()) - {None}]
    keep(store, [new[at : at + 7] for at in range(0, len(new), 7)])
    for at, seed in rewrites.items():
        disk[at] = None if seed is None else block(1000 + seed)
    return disk


def read(reader: ObjectReader, disk: Disk, trail: Trail, wanted: Sequence[bool]) -> None:
    """Read the blocks that are wanted; all of them are right, and no others come."""
    blocks = [[ZERO_ID if data is None else object_id(data)] for data in disk]
    there = [None if want else [b"there already"] for want in wanted]
    right = {
        object_id(data): data for data, want in zip(disk, wanted, strict=True) if want and data
    }
    found = reader._leaves._scattered(blocks, there, SIZE, trail, reader.get_placed)  # type: ignore[arg-type]
    assert found == {ZERO_ID: bytes(SIZE), **right}


@given(
    rewrites=st.dictionaries(
        st.integers(0, 159), st.one_of(st.none(), st.integers(0, 60)), max_size=90
    ),
    passed=st.sets(st.integers(0, 159), max_size=40),
    cuts=st.lists(st.integers(1, 159), max_size=6),
    start=st.tuples(st.integers(0, 12), st.integers(0, 40)),
)
def test_whatever_was_rewritten_and_wherever_it_begins(
    rewrites: dict[int, int | None],
    passed: set[int],
    cuts: list[int],
    start: tuple[int, int],
) -> None:
    with MemoryStore(OPTIONS) as store:
        disk = rewritten(store, 160, rewrites)
        reader, trail = ObjectReader(store), Trail()
        trail.anchor = location(*start)
        edges = [0, *sorted(set(cuts)), 160]
        for low, high in pairwise(edges):
            read(reader, disk[low:high], trail, [at not in passed for at in range(low, high)])


@pytest.mark.parametrize("zeros", [(), (40, 77, 78)], ids=["none", "zeros that never had a place"])
def test_only_what_was_rewritten_is_looked_up(
    store: Store, monkeypatch: pytest.MonkeyPatch, zeros: Sequence[int]
) -> None:
    disk = rewritten(store, 160, {at: at for at in range(0, 160, 5)})
    for at in zeros:
        disk.insert(at, None)
    new = {block(1000 + at) for at in range(0, 160, 5)}
    counts: list[int] = []
    located = leaves.located
    monkeypatch.setattr(
        leaves, "located", lambda reader, ids: counts.append(len(ids)) or located(reader, ids)
    )
    reader, trail = ObjectReader(store), Trail()
    for at in range(0, 160, 32):
        read(reader, disk[at : at + 32], trail, [True] * 32)
    assert counts[0] == 32, "at first there is no trail"
    assert counts[1:] == [
        sum(data in new for data in disk[at : at + 32]) for at in range(32, 160, 32)
    ]


def test_other_objects_on_the_way_are_none_of_it(store: Store) -> None:
    nodes = [noise(number, 1024) for number in range(20)]
    datas = [block(number) for number in range(32)]
    keep(store, [datas[:20], nodes, datas[20:]])
    disk: Disk = list(datas)
    trail = Trail()
    trail.anchor = location(1, 0)
    read(ObjectReader(store), disk, trail, [True] * 32)


def test_what_is_missing_is_damage(store: Store) -> None:
    disk = rewritten(store, 40, {})
    disk[17] = block(77)
    with pytest.raises(Damaged, match="missing"):
        read(ObjectReader(store), disk, Trail(), [True] * 40)


def test_a_place_that_is_wrong_is_damage(store: Store) -> None:
    disk = rewritten(store, 40, {})
    with store.write() as writer:
        writer.put("index", object_id(block(17)), tables.pack_location(location(1, 3)))
    with pytest.raises(Damaged, match="not what was stored"):
        read(ObjectReader(store), disk, Trail(), [True] * 40)
