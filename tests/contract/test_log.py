"""What every store does with the event log."""

from __future__ import annotations

import pytest

from blockvault.errors import BadRequest, Damaged
from blockvault.store import eventlog, tables
from blockvault.store.types import Record, Store, Writer
from tests.contract.conftest import Make
from tests.store.material import CODEC, OPTIONS

COUNTS = [1, 3, 1, 70_000, 2]


def fill(store: Store) -> list[Record]:
    wanted, chain, first = [], eventlog.genesis(OPTIONS.vault_id), 1
    for number, count in enumerate(COUNTS):
        payload = b"rows of record %d " % number * 50
        with store.write() as writer:
            assert writer.append(payload, count, 1000 + number) == first
        chain = eventlog.next_chain(chain, first, 1000 + number, count, payload)
        wanted.append(Record(first, count, 1000 + number, payload, chain))
        first += count
    return wanted


def test_an_empty_log_ends_at_its_genesis(store: Store) -> None:
    with store.read() as reader:
        assert reader.last() == (0, 0, eventlog.genesis(OPTIONS.vault_id))
        assert reader.record(0) is None
        assert reader.record(1) is None
        assert list(reader.records()) == []


def test_records_come_back_as_they_were_appended(store: Store) -> None:
    wanted = fill(store)
    with store.read() as reader:
        assert list(reader.records()) == wanted
        assert list(reader.records(0)) == wanted
        assert reader.last() == (wanted[-1].last_seq, 1004, wanted[-1].chain)


@pytest.mark.parametrize(
    ("seq", "number"), [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (6, 3), (70_005, 3), (70_007, 4)]
)
def test_any_event_finds_its_record(store: Store, seq: int, number: int) -> None:
    wanted = fill(store)
    with store.read() as reader:
        assert reader.record(seq) == wanted[number]
        assert list(reader.records(seq)) == wanted[number:]
        assert list(reader.records(seq, seq)) == [r for r in wanted[number:] if r.first_seq < seq]


def test_events_beyond_the_ends_have_none(store: Store) -> None:
    wanted = fill(store)
    with store.read() as reader:
        for seq in (-1, 0, wanted[-1].last_seq + 1, 1 << 62):
            assert reader.record(seq) is None
        assert list(reader.records(wanted[-1].last_seq + 1)) == []
        assert list(reader.records(1, 1)) == []
        assert list(reader.records(1, 2)) == wanted[:1]
        assert list(reader.records(2, 6)) == wanted[1:3]


def test_time_never_goes_backwards(store: Store) -> None:
    for time_us, kept in ((50, 50), (20, 50), (-7, 50), (51, 51)):
        with store.write() as writer:
            writer.append(b"", 1, time_us)
            assert writer.last().time_us == kept


def test_several_records_of_one_commit(store: Store) -> None:
    with store.write() as writer:
        assert [writer.append(b"x", 2, 5), writer.append(b"y", 1, 6)] == [1, 3]
        assert writer.last().seq == 3
        assert [r.payload for r in writer.records()] == [b"x", b"y"]
        assert [writer.stands(tables.LOG, seq) for seq in (1, 2, 3)] == [True, False, True]


def test_a_record_without_events_is_refused(store: Store) -> None:
    with store.write() as writer, pytest.raises(BadRequest):
        writer.append(b"", 0, 1)


def test_logs_of_two_vaults_differ_from_the_start(make: Make) -> None:
    ends = set()
    for number in range(2):
        store = make(OPTIONS._replace(vault_id=bytes([number]) * 16))
        with store.write() as writer:
            writer.append(b"same", 1, 1)
            ends.add(writer.last().chain)
    assert len(ends) == 2


@pytest.mark.parametrize("gap", [1, 2])
def test_a_forged_record_and_a_gap_are_damage(store: Store, gap: int) -> None:
    wanted = fill(store)
    first = wanted[-1].last_seq + gap
    forged = Record(first, 3, 1001, b"forged", wanted[1].chain)
    with store.write() as writer:
        assert isinstance(writer, Writer)
        writer._log_put(first, eventlog.encode(forged, CODEC))
    with store.read() as reader:
        assert reader.record(5) == wanted[2]
        for attempt in (lambda: reader.record(first), lambda: list(reader.records())):
            with pytest.raises(Damaged) as caught:
                attempt()
            assert caught.value.reason == "broken-chain"


def test_the_log_is_only_ever_appended_to(store: Store) -> None:
    wanted = fill(store)
    with store.write() as writer:
        assert isinstance(writer, Writer)
        with pytest.raises(Damaged, match="not the end"):
            writer._log_put(2, b"anything")
    with store.read() as reader:
        assert list(reader.records()) == wanted
