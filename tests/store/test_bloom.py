"""The filter before the index: it never says that something is absent which is there."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blockvault.errors import Damaged
from blockvault.ids import object_id
from blockvault.store import bloom, bloomfile, frames, tables
from blockvault.store.bloom import Bloom
from blockvault.store.codec import Codec
from blockvault.store.env import LmdbStore
from tests.store.material import block, framed, run_python

DATA = {object_id(b"%d" % number): b"%d" % number for number in range(2000)}
MANY = list(DATA)


class State:
    """A vault at a moment, as a transaction sees it; ``put`` is for the one that keeps a filter."""

    def __init__(
        self,
        clock: int,
        ids: frozenset[bytes],
        frames: Mapping[int, Sequence[bytes]] | None = None,
        token: bytes | None = None,
    ) -> None:
        self.clock = clock
        self.ids = ids
        self.frames = dict(frames or {})
        self.token = token

    def next_frame(self) -> int:
        return self.clock

    def index_size(self) -> int:
        return len(self.ids)

    def index_entries(self, first: int) -> bytes:
        return b"".join(oid + bytes(7) for oid in sorted(self.ids) if oid[0] == first)

    def indexed(self, ids: Sequence[bytes]) -> set[bytes]:
        return self.ids & set(ids)

    def frame_view(self, number: int) -> memoryview | None:
        ids = self.frames.get(number)
        return ids and memoryview(frames.encode([DATA[oid] for oid in ids], Codec("none")))

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.token

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.token = value

    def after(self, ids: Iterable[bytes], frames: int, kept: int | None = None) -> State:
        """The state once frames with these objects were stored, ``kept`` of which stand."""
        ids = list(ids)
        new = {self.clock + at: ids[at::frames] for at in range(frames if kept is None else kept)}
        known = {number: some for number, some in new.items() if some}
        everything = {**self.frames, **known}
        return State(self.clock + frames, self.ids | set(ids), everything, self.token)


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


def test_what_others_store_is_taken_out_of_their_frames() -> None:
    state = State(10, frozenset(MANY[:500]))
    filter_ = filled(state)
    later = state.after(MANY[500:510], frames=2)
    assert len(passing(filter_, MANY, later) - set(MANY[:510])) <= 5, "it went on"
    assert set(MANY[500:510]) <= passing(filter_, MANY, later)


def test_what_others_store_empties_it_if_it_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(10, frozenset(MANY[:500]))
    many = state.after(MANY[500:540], frames=bloom.CATCH_UP_FRAMES + 1)
    assert passing(filled(state), MANY, many) == set(MANY)
    few = state.after(MANY[500:540], frames=4)
    assert passing(filled(state), MANY, few) < set(MANY)
    monkeypatch.setattr(bloom, "CATCH_UP_BYTES", 100)
    assert passing(filled(state), MANY, few) == set(MANY)


def test_what_others_indexed_empties_it_if_it_is_in_no_frame() -> None:
    state = State(10, frozenset(MANY[:500]))
    assert passing(filled(state), MANY, state.after(MANY[500:501], frames=1, kept=0)) == set(MANY)


def test_a_frame_that_holds_what_nobody_indexed_empties_it() -> None:
    state = State(10, frozenset(MANY[:500]))
    damaged = state.after(MANY[500:502], frames=1)
    damaged.frames[10] = MANY[502:504]
    assert passing(filled(state), MANY, damaged) == set(MANY)


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
    """One process with the filter, others that store too, readers that began earlier.

    Processes end, and leave their filter to the next; and the vault goes back to a copy.
    """

    bloom = Bloom

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.filter = self.bloom(self.directory)
        self.states = [State(1, frozenset())]

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    some = st.lists(st.sampled_from(MANY[:40]), max_size=6)

    @rule(ids=some, frames=st.integers(1, 3))
    def we_store(self, ids: list[bytes], frames: int) -> None:
        last = self.states[-1]
        self.filter.announce(last.clock, last.clock + frames, ids)
        self.states.append(last.after(ids, frames))

    @rule(ids=some)
    def we_fail_to_store(self, ids: list[bytes]) -> None:
        clock = self.states[-1].clock
        self.filter.announce(clock, clock + 1, ids)
        self.filter.failed()

    @rule(ids=some, frames=st.integers(1, 3), data=st.data())
    def others_store(self, ids: list[bytes], frames: int, data: st.DataObject) -> None:
        kept = data.draw(st.integers(0, frames))
        self.states.append(self.states[-1].after(ids, frames, kept))

    @rule(ids=some)
    def a_collection_forgets(self, ids: list[bytes]) -> None:
        last = self.states[-1]
        self.states.append(State(last.clock, last.ids - set(ids), last.frames, last.token))

    @rule(back=st.integers(0, 3), times=st.integers(1, 30))
    def somebody_asks(self, back: int, times: int) -> None:
        for _ in range(times):
            self.filter.perhaps(self.states[max(0, len(self.states) - 1 - back)], MANY[:40])

    @rule(leave=st.booleans())
    def another_process_begins(self, leave: bool) -> None:
        last = self.states[-1]
        if leave and self.filter.worth_keeping(last):
            with_token = last.after((), 0, 0)
            self.filter.keep(with_token)
            self.states.append(with_token)
        self.filter = self.bloom(self.directory)

    @rule(data=st.data())
    def a_copy_of_the_database_is_put_back(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.states) - 1))
        del self.states[at + 1 :]
        self.filter = self.bloom(self.directory)

    @invariant()
    def nothing_that_is_there_is_called_absent(self) -> None:
        # What a collection has forgotten since is absent for anybody's needs.
        stays = set(MANY[:40])
        for state in reversed(self.states[-4:]):
            stays &= state.ids
            assert passing(self.filter, MANY[:40], state) >= stays


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter of 8 KiB, which small vaults leave to others too."""
    monkeypatch.setattr(bloom, "BITS", 16)
    monkeypatch.setattr(bloom, "_SHIFT", 16)
    monkeypatch.setattr(bloom, "KEEP_FROM", 1)
    monkeypatch.setattr(bloom, "LOAD_AFTER", 1)


def run(
    machine: type[RuleBasedStateMachine], examples: int, phases: Iterable[Phase] = tuple(Phase)
) -> None:
    case = machine.TestCase
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
    )
    case("runTest").runTest()


@pytest.mark.usefixtures("small")
def test_it_never_calls_absent_what_is_there() -> None:
    run(Others, 150)


class Deaf(Bloom):
    """Does not look at the clock."""

    def perhaps(self, reader: bloom.IndexReader, ids: Sequence[bytes]) -> list[bytes]:
        self._next = max(self._next, reader.next_frame())
        self._base = 0
        return super().perhaps(reader, ids)


class Hasty(Bloom):
    """Takes what it can out of the frames of others, and does not mind those that are not there."""

    def _catch_up(self, reader: bloom.IndexReader, now: int) -> bool:
        for number in range(self._next, now):
            view = reader.frame_view(number)
            if view is not None:
                self._add(bloom._number(object_id(data)) for data in frames.decode(view))
        self._next = now
        return True


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("wrong", [Deaf, Hasty])
def test_the_model_finds_a_filter_that_is_wrong(wrong: type[Bloom]) -> None:
    class Wrong(Others):
        bloom = wrong

    with pytest.raises((AssertionError, ExceptionGroup)):
        run(Wrong, 1000, phases=[Phase.generate])


# -- between processes -----------------------------------------------------------------------------


def left(directory: Path, state: State, kind: type[Bloom] = Bloom) -> None:
    """A process that knew all of the index has ended."""
    filter_ = kind(directory)
    for _ in range(tables.INDEX_PARTS):
        filter_.perhaps(state, MANY)
    assert filter_.worth_keeping(state)
    filter_.keep(state)
    assert not filter_.worth_keeping(state), "it has been kept"


@pytest.mark.usefixtures("small")
def test_the_next_process_has_it_at_once(tmp_path: Path) -> None:
    state = State(10, frozenset(MANY[:500]))
    left(tmp_path, state)
    later = state.after(MANY[500:510], frames=2)
    filter_ = Bloom(tmp_path)
    assert passing(filter_, MANY, later) == set(MANY), "these look-ups pay for reading it"
    found = passing(filter_, MANY, later)
    assert set(MANY[:510]) <= found
    assert len(found) < 600, "two bytes of an id tell most apart"
    assert filter_.worth_keeping(later), "it has more than the file"


@pytest.mark.usefixtures("small")
def test_few_lookups_do_not_pay_for_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bloom, "LOAD_AFTER", 41)
    state = State(10, frozenset(MANY))
    left(tmp_path, state)
    filter_ = Bloom(tmp_path)
    filter_.perhaps(state, MANY[:40])
    assert filter_._parts < tables.INDEX_PARTS
    filter_.perhaps(state, MANY[:1])
    assert filter_._parts == tables.INDEX_PARTS


class Trusting(Bloom):
    """Believes a file without asking whether it belongs to this database."""

    def _kept(self, reader: bloom.IndexReader) -> bloomfile.Kept | None:
        assert self._directory is not None
        path = self._directory / bloomfile.NAME
        token = path.read_bytes()[8:24] if path.exists() else b""
        return bloomfile.load(self._directory, token, 1 << bloom.BITS >> 3)


@pytest.mark.usefixtures("small")
def test_the_file_of_another_history_is_not_believed(tmp_path: Path) -> None:
    copied = State(10, frozenset(MANY[:500]))
    left(tmp_path, copied.after(MANY[500:600], frames=5))
    state = copied.after(MANY[600:700], frames=7)
    for kind, right in ((Bloom, True), (Trusting, False)):
        filter_ = kind(tmp_path)
        passing(filter_, MANY, state)
        assert (state.ids <= passing(filter_, MANY, state)) == right


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "harm",
    [
        Path.unlink,
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:40]),
    ],
    ids=["gone", "a bit", "a byte too short", "empty", "in its head"],
)
def test_a_file_that_is_not_whole_is_passed_over(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    state = State(10, frozenset(MANY[:500]))
    left(tmp_path, state)
    for whole in (True, False):
        filter_ = Bloom(tmp_path)
        passing(filter_, MANY, state)
        assert (filter_._parts == tables.INDEX_PARTS) == whole
        if whole:
            harm(tmp_path / bloomfile.NAME)


@pytest.mark.usefixtures("small")
def test_it_is_not_left_when_most_of_it_has_gone_from_the_index(tmp_path: Path) -> None:
    filter_ = Bloom(tmp_path)
    state = State(10, frozenset(MANY))
    for _ in range(tables.INDEX_PARTS):
        filter_.perhaps(state, MANY)
    filter_.keep(State(10, frozenset(MANY[:400])))
    assert not list(tmp_path.iterdir())
    assert passing(filter_, MANY, state) == set(MANY), "it begins anew"


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


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small vaults leave a filter too, and read it."""
    monkeypatch.setattr(bloom, "KEEP_FROM", 1)
    monkeypatch.setattr(bloom, "LOAD_AFTER", 1)


def used(home: Path) -> None:
    """Open a vault, learn all of its index, and close it."""
    with LmdbStore.open(home) as store:
        for _ in range(tables.INDEX_PARTS):
            with store.read() as reader:
                reader.known([object_id(block(1))])


@pytest.mark.usefixtures("kept")
def test_a_vault_that_is_closed_leaves_its_filter(store: LmdbStore, home: Path) -> None:
    with store.write() as writer:
        writer.add_frames([framed([block(number) for number in range(8)])])
    store.close()
    used(home)
    run_python(STORE_ONE, home, 9)
    new = [object_id(block(number)) for number in range(8, 12)]
    with LmdbStore.open(home) as later:
        with later.read() as reader:
            assert reader.known([*new, object_id(block(1))]) == {new[1], object_id(block(1))}
        assert later._env.bloom._parts == tables.INDEX_PARTS, "it was read"
        assert oct((home / bloomfile.NAME).stat().st_mode)[-3:] == "600"


@pytest.mark.usefixtures("kept")
def test_nobody_waits_for_the_filter_to_be_kept(store: LmdbStore, home: Path) -> None:
    with store.write() as writer:
        writer.add_frames([framed([block(1)])])
    with store.write():
        ended = threading.Thread(target=used, args=(home,))
        ended.start()
        ended.join(5)
        assert not ended.is_alive()
    assert not (home / bloomfile.NAME).exists()
    used(home)
    assert (home / bloomfile.NAME).exists()


@pytest.mark.usefixtures("kept")
def test_a_disk_that_takes_no_file_does_no_harm(
    store: LmdbStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.write() as writer:
        writer.add_frames([framed([block(1)])])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    used(home)
    assert not [entry.name for entry in home.iterdir() if entry.name.startswith(bloomfile.NAME)]
    with store.read() as reader:
        assert reader.get(tables.META, bloomfile.META_KEY) is None, "nothing was committed either"
