"""The filter before the index: it never says that something is absent which is there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blockvault.errors import Damaged
from blockvault.ids import object_id
from blockvault.store import bloom, tables
from blockvault.store.bloom import Bloom
from blockvault.store.env import LmdbStore
from tests.store.material import block, framed, run_python

MANY = [object_id(b"%d" % number) for number in range(2000)]


class State:
    """An index at a moment, as a transaction sees it."""

    def __init__(self, clock: int, ids: frozenset[bytes]) -> None:
        self.clock = clock
        self.ids = ids

    def next_frame(self) -> int:
        return self.clock

    def index_size(self) -> int:
        return len(self.ids)

    def index_entries(self, first: int) -> bytes:
        return b"".join(oid + bytes(7) for oid in sorted(self.ids) if oid[0] == first)


def passing(filter_: Bloom, ids: Sequence[bytes], state: State) -> set[bytes]:
    return set(filter_.perhaps(state, ids))


def filled(state: State) -> Bloom:
    """A filter that has had enough look-ups to know all of the index."""
    filter_ = Bloom()
    for _ in range(tables.INDEX_PARTS):
        filter_.perhaps(state, MANY)
    return filter_


def test_what_is_new_need_not_be_looked_up() -> None:
    state = State(10, frozenset(MANY[:500]))
    assert passing(Bloom(), MANY, state) == set(MANY), "it knows nothing yet"
    found = passing(filled(state), MANY, state)
    assert found >= state.ids
    assert len(found) <= len(state.ids) + 5


def test_it_is_filled_as_fast_as_lookups_pay_for_it() -> None:
    state = State(10, frozenset(MANY))
    filter_ = Bloom()
    filter_.perhaps(state, MANY[:1])
    assert filter_._parts <= 16
    for _ in range(40):
        filter_.perhaps(state, MANY[:1])
    assert 16 < filter_._parts < tables.INDEX_PARTS


def test_what_others_store_empties_it() -> None:
    filter_ = filled(State(10, frozenset(MANY[:500])))
    later = State(11, frozenset(MANY[:501]))
    assert MANY[500] in passing(filter_, MANY, later)


@pytest.mark.parametrize("method", ["next_frame", "index_entries"])
def test_a_damaged_page_elsewhere_is_not_its_concern(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> int:
        raise Damaged("a row is not what it was")

    state = State(10, frozenset(MANY[:500]))
    filter_ = filled(State(9, frozenset())) if method == "next_frame" else Bloom()
    monkeypatch.setattr(state, method, damaged)
    for _ in range(3):
        assert passing(filter_, MANY, state) == set(MANY)


def test_a_failed_commit_leaves_its_numbers_to_others() -> None:
    filter_ = filled(State(10, frozenset(MANY[:500])))
    filter_.announce(10, 11, MANY[500:501])
    filter_.failed()
    assert MANY[600] in passing(filter_, MANY, State(11, frozenset([*MANY[:500], MANY[600]])))


class Others(RuleBasedStateMachine):
    """One process with the filter, others that store too, readers that began earlier."""

    bloom = Bloom

    @initialize()
    def begin(self) -> None:
        self.filter = self.bloom()
        self.states = [State(1, frozenset())]

    def _commit(self, ids: Sequence[bytes], frames: int) -> None:
        last = self.states[-1]
        self.states.append(State(last.clock + frames, last.ids | set(ids)))

    some = st.lists(st.sampled_from(MANY[:40]), max_size=6)

    @rule(ids=some, frames=st.integers(1, 3))
    def we_store(self, ids: list[bytes], frames: int) -> None:
        clock = self.states[-1].clock
        self.filter.announce(clock, clock + frames, ids)
        self._commit(ids, frames)

    @rule(ids=some)
    def we_fail_to_store(self, ids: list[bytes]) -> None:
        clock = self.states[-1].clock
        self.filter.announce(clock, clock + 1, ids)
        self.filter.failed()

    @rule(ids=some, frames=st.integers(1, 3))
    def others_store(self, ids: list[bytes], frames: int) -> None:
        self._commit(ids, frames)

    @rule(ids=some)
    def a_collection_forgets(self, ids: list[bytes]) -> None:
        last = self.states[-1]
        self.states.append(State(last.clock, last.ids - set(ids)))

    @rule(back=st.integers(0, 3), times=st.integers(1, 30))
    def somebody_asks(self, back: int, times: int) -> None:
        for _ in range(times):
            self.filter.perhaps(self.states[max(0, len(self.states) - 1 - back)], MANY[:40])

    @invariant()
    def nothing_that_is_there_is_called_absent(self) -> None:
        # What a collection has forgotten since is absent for anybody's needs.
        stays = set(MANY[:40])
        for state in reversed(self.states[-4:]):
            stays &= state.ids
            assert passing(self.filter, MANY[:40], state) >= stays


TestOthers = Others.TestCase
TestOthers.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


class Deaf(Bloom):
    """Does not look at the clock."""

    def perhaps(self, reader: bloom.IndexReader, ids: Sequence[bytes]) -> list[bytes]:
        self._next = max(self._next, reader.next_frame())
        self._base = 0
        return super().perhaps(reader, ids)


def test_the_model_finds_a_filter_that_is_deaf_to_others() -> None:
    class DeafToOthers(Others):
        bloom = Deaf

    case = DeafToOthers.TestCase
    case.settings = settings(max_examples=500, stateful_step_count=25, deadline=None, database=None)
    with pytest.raises((AssertionError, ExceptionGroup)):
        case("runTest").runTest()


# -- in a vault ------------------------------------------------------------------------------------


STORE_ONE = """
with LmdbStore.open(sys.argv[1]) as store, store.write() as writer:
    writer.add_frames([framed([block(int(sys.argv[2]))])])
"""
INDEX_ONE = """
with LmdbStore.open(sys.argv[1]) as store, store.write() as writer:
    writer.put("index", object_id(block(int(sys.argv[2]))), (1 << 16).to_bytes(8))
"""


@pytest.mark.parametrize("code", [STORE_ONE, INDEX_ONE], ids=["a frame", "a row of the index"])
def test_another_process_adds_to_the_index(store: LmdbStore, home: Path, code: str) -> None:
    with store.write() as writer:
        writer.add_frames([framed([block(number) for number in range(8)])])
    new = [object_id(block(number)) for number in range(8, 12)]
    for _ in range(tables.INDEX_PARTS):
        with store.read() as reader:
            assert reader.known([*new, object_id(block(1))]) == {object_id(block(1))}
    assert store._env.bloom._parts == tables.INDEX_PARTS, "it answers out of the filter"
    run_python(code, home, 9)
    with store.read() as reader:
        assert reader.known(new) == {new[1]}


def test_what_this_process_stores_it_knows(store: LmdbStore) -> None:
    ids = [object_id(block(number)) for number in range(200)]
    for number in range(200):
        with store.read() as reader:
            assert reader.known(ids) == set(ids[:number])
        with store.write() as writer:
            writer.add_frames([framed([block(number)])])
    assert store._env.bloom._parts == tables.INDEX_PARTS


def test_a_commit_that_was_given_up_is_not_believed(store: LmdbStore) -> None:
    with suppress(KeyError), store.write() as writer:
        writer.add_frames([framed([block(1)])])
        raise KeyError
    with store.read() as reader:
        assert reader.known([object_id(block(1))]) == set()
    with store.write() as writer:
        writer.add_frames([framed([block(2)])])
    with store.read() as reader:
        assert reader.known([object_id(block(1)), object_id(block(2))]) == {object_id(block(2))}
