"""Flushes by the journal: at once durable, soon in the tables, and once only, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blockvault import Vault, journaling
from blockvault.errors import Busy, Damaged, NoSpace
from blockvault.session import Session
from blockvault.store import journal
from blockvault.transaction import Transaction
from tests.oracle import BLOCK, Disk, noise, whole

SIZE = 64 * BLOCK
VOLUME = "vda"


@pytest.fixture(autouse=True)
def from_the_first_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journaling, "AFTER_FLUSHES", 0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables are not written before somebody wants it."""
    monkeypatch.setattr(journaling, "SETTLE_SECONDS", 3600.0)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.create(tmp_path) as made:
        with made.session() as session:
            session.create_volume(VOLUME, SIZE)
        yield made


def crash(session: Session) -> None:
    """The end of a process: what is in memory is lost, the kernel takes lease and files back."""

    def dead(*_: object, **__: object) -> None:
        raise RuntimeError("this process has ended")

    session._commit = dead  # type: ignore[method-assign]
    session._behind.end()
    session._journaling.abandon()
    session._lease.release()


def kinds(vault: Vault, since: int) -> list[str]:
    return [type(logged.event).__name__ for logged in vault.events(since=since)]


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_flush_is_in_the_tables_a_moment_later(vault: Vault) -> None:
    with vault.session() as session:
        before = vault.branch().seq
        for number in range(3):
            session.device().write(number * BLOCK, b"x")
            session.device().flush()
        eventually(lambda: vault.branch().seq == before + 6)
        assert kinds(vault, before + 1) == ["Wrote", "Barrier"] * 3
        assert session.pending_bytes == 0
        assert vault.journals
    assert not vault.journals, "who ends in order needs no journal"


@pytest.mark.usefixtures("slow")
def test_what_was_flushed_survives_and_what_was_not_does_not(vault: Vault) -> None:
    before = vault.branch().seq
    session = vault.session()
    disk = Disk(SIZE, session.device())
    disk.write(5, b"parts of a block")
    disk.write(BLOCK, noise(1, 3 * BLOCK))
    session.device().flush()
    disk.zero(BLOCK + 10, 2 * BLOCK)
    disk.trim(0, BLOCK)
    session.device().flush()
    session.device().flush()
    assert vault.branch().seq == before, "nothing of it is in the tables"
    assert not session.unstored[0]
    times = [entry[0] for entry in session.pending.entries]
    session.device().write(9 * BLOCK, b"not flushed")
    assert session.unstored[0]
    crash(session)
    with Vault.open(vault.path) as again:
        recorded = list(again.events(since=before + 1))
        assert [type(logged.event).__name__ for logged in recorded] == [
            *("Wrote", "Wrote", "Barrier", "Wrote", "Wrote", "Zeroed", "Trimmed", "Barrier"),
        ]
        writes = [e.time_us for e in recorded if type(e.event).__name__ != "Barrier"]
        assert writes == times, "with the times that they had"
        assert again.open_volume("main").read() == disk.data
        first = again.branch().seq - 5
        assert (
            again.open_volume(f"main@{{#{first}}}").read()[:21] == b"\0" * 5 + b"parts of a block"
        )
        assert not again.journals


@pytest.mark.usefixtures("slow")
def test_what_is_appended_ahead_is_not_appended_again(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, append, records = vault.branch().seq, journal.Journal.append, []

    def watched(self: journal.Journal, first: int, stop: int, *more: Any) -> bool:
        records.append((first, stop))
        return append(self, first, stop, *more)

    monkeypatch.setattr(journal.Journal, "append", watched)
    with vault.session() as session:
        device = session.device()
        device.flush_ahead()
        device.write(0, b"the first flush makes the journal")
        device.flush()
        for number in range(1, 4):
            device.write(number * BLOCK, b"x")
            device.flush_ahead()
            device.flush_ahead()
            assert session.unstored[0], "nothing is promised"
            device.flush()
            assert not session.unstored[0]
        assert records == [(number, number + 1) for number in range(4)]
    assert kinds(vault, before + 1) == ["Wrote", "Barrier"] * 4


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("flushed", [True, False])
def test_a_crash_after_a_record_that_was_appended_ahead(vault: Vault, flushed: bool) -> None:
    """What was flushed is there; what was not may be, as on a disk, in the order of the writes."""
    before = vault.branch().seq
    session = vault.session()
    disk = Disk(SIZE, session.device())
    disk.write(0, b"one")
    session.device().flush()
    disk.write(BLOCK, b"two")
    session.device().flush_ahead()
    if flushed:
        session.device().flush()
    session.device().write(2 * BLOCK, b"three, neither flushed nor ahead")
    crash(session)
    with vault.session() as again:
        assert whole(again.device()) == disk.data
    assert kinds(vault, before + 1) == ["Wrote", "Barrier"] * 2


def test_a_record_ahead_waits_for_no_commit(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a commit has taken entries that the journal lacks, nothing is appended."""
    with vault.session() as session:
        session.device().write(0, b"x")
        session.device().flush()
        session.device().write(BLOCK, b"y")
        batch = session.pending.take(session.pending.taken)
        monkeypatch.setattr(journal.Journal, "append", lambda *_: pytest.fail("appended"))
        session.device().flush_ahead()
        session.pending.give_back(batch)


@pytest.mark.usefixtures("slow")
def test_nothing_is_stored_twice(vault: Vault) -> None:
    """Commits go on beside the journal; what they have stored is not taken from it again."""
    before = vault.branch().seq
    session = vault.session()
    disk = Disk(SIZE, session.device())
    for number in range(40):
        disk.write(number % 8 * BLOCK, noise(number, BLOCK))
        session.device().flush()
        if number in (11, 12, 30):
            session.commit(barrier=False)
        if number == 20:
            session.snapshot()
    crash(session)
    with vault.session() as again:
        assert whole(again.device()) == disk.data
    recorded = kinds(vault, before + 1)
    assert recorded.count("Wrote") == recorded.count("Barrier") == 40
    assert [each for each in recorded if each != "Snapshotted"] == ["Wrote", "Barrier"] * 40


@pytest.mark.usefixtures("slow")
def test_a_crash_during_recovery_is_no_other(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    before = vault.branch().seq
    session = vault.session()
    session.device().write(0, noise(1, BLOCK))
    session.device().flush()
    crash(session)
    monkeypatch.setattr(journaling.Journaling, "end", lambda self: self.abandon())
    with vault.session():
        pass
    monkeypatch.undo()
    assert vault.journals, "the journal stayed, though the tables have what it says"
    with vault.session() as again:
        assert again.device().read(0, BLOCK) == noise(1, BLOCK)
    assert kinds(vault, before + 1) == ["Wrote", "Barrier"]


@pytest.mark.usefixtures("slow")
def test_whoever_moves_the_branch_stores_the_journal_first(vault: Vault) -> None:
    start = vault.branch().seq
    session = vault.session()
    session.device().write(0, b"promised")
    session.device().flush()
    crash(session)
    vault.rollback("main", f"main@{{#{start}}}")
    assert kinds(vault, start + 1) == ["Wrote", "Barrier", "RolledBack"]
    with vault.session() as again:
        assert again.device().read(0, 8) == bytes(8)


@pytest.mark.usefixtures("slow")
def test_the_journal_of_a_session_that_lives_is_left_alone(vault: Vault) -> None:
    before = vault.branch().seq
    with vault.session() as session:
        session.device().write(0, b"x")
        session.device().flush()
        with Vault.open(vault.path) as other:
            assert other.branch().seq == before
            with pytest.raises(Busy):
                other.session()
        session.flush()
        assert kinds(vault, before + 1) == ["Wrote", "Barrier"]


def end(session: Session) -> None:
    """The end in order of who cannot store what is left."""
    with pytest.raises(NoSpace):
        session.close()


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("leave", [crash, end])
def test_a_full_disk_keeps_the_journal(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, leave: Callable[[Session], None]
) -> None:
    """Flushes go on as long as the journal has room; at the next start there must be room again."""
    session = vault.session()
    disk = Disk(SIZE, session.device())
    disk.write(0, noise(1, BLOCK))
    session.device().flush()
    finish = Transaction.finish

    def full(transaction: Transaction) -> None:
        finish(transaction)
        raise NoSpace("the disk is full")

    monkeypatch.setattr(Transaction, "finish", full)
    with pytest.raises(NoSpace):
        session.flush()
    disk.write(BLOCK, noise(2, BLOCK))
    session.device().flush()
    assert whole(session.device()) == disk.data
    leave(session)
    with Vault.open(vault.path) as reading:
        assert reading.device("main").read(0, BLOCK) == bytes(BLOCK), "reads go on"
        with pytest.raises(NoSpace):
            reading.session()
    monkeypatch.setattr(Transaction, "finish", finish)
    with Vault.open(vault.path) as again:
        assert again.open_volume("main").read() == disk.data


def test_without_room_for_a_journal_the_tables_do_it(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise NoSpace("no room for a journal")

    monkeypatch.setattr(journal.Journal, "create", none)
    with vault.session() as session:
        before = vault.branch().seq
        session.device().write(0, b"x")
        session.device().flush()
        assert kinds(vault, before + 1) == ["Wrote", "Barrier"]
        assert not session.journaled


@pytest.mark.usefixtures("slow")
def test_a_journal_that_fails_is_not_used_again_but_counted_with(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = vault.branch().seq
    session = vault.session()
    disk = Disk(SIZE, session.device())
    disk.write(0, b"one")
    session.device().flush()
    write, fail = journal._write, True

    def broken(*arguments: Any) -> None:
        if fail:
            raise OSError(5, "Input/output error")
        write(*arguments)

    monkeypatch.setattr(journal, "_write", broken)
    disk.write(0, b"two")
    session.device().flush()
    assert kinds(vault, before + 1) == ["Wrote", "Barrier"] * 2, "the tables had to do it"
    fail = False
    disk.write(0, b"six")
    session.device().flush()
    assert kinds(vault, before + 1) == ["Wrote", "Barrier"] * 3
    crash(session)
    with vault.session() as again:
        assert whole(again.device()) == disk.data, "the journal is older than the tables"
    assert kinds(vault, before + 1) == ["Wrote", "Barrier"] * 3


def test_more_than_the_journal_holds(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    create = journal.Journal.create
    monkeypatch.setattr(
        journal.Journal, "create", lambda path, branch: create(path, branch, 16 * journal.PAGE)
    )
    monkeypatch.setattr(journaling, "APPENDED_BYTES", 8 * BLOCK)
    session = vault.session()
    disk = Disk(SIZE, session.device())
    for number in range(300):
        length = BLOCK * (12 if number % 50 == 49 else 1)
        disk.write(number * 7 % 52 * BLOCK, noise(number, length))
        if number % 3:
            session.device().flush()
    session.device().flush()
    crash(session)
    assert vault.journals
    with vault.session() as again:
        assert whole(again.device()) == disk.data


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("place", [0, journal.PAGE], ids=["header", "first of two records"])
def test_a_damaged_journal_is_told_and_left(vault: Vault, place: int) -> None:
    session = vault.session()
    for number in range(2):
        session.device().write(number * BLOCK, b"x")
        session.device().flush()
    crash(session)
    path = journal.path_of(vault.path, vault.branch().id)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"?")
    with Vault.open(vault.path) as again:
        assert again.device("main").read(0, 1) == b"\0", "the past can be read"
        with pytest.raises(Damaged, match="move this file away"):
            again.session()
    path.rename(path.with_suffix(".away"))
    with vault.session() as again_writing:
        assert again_writing.device().read(0, 1) == b"\0"
