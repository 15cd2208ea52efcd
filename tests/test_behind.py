"""Commits behind a session's back: when they come, and what becomes of writers without them."""

from __future__ import annotations

import threading

import pytest

from blockvault import Vault, behind, journaling
from blockvault.pending import Pending
from blockvault.session import Session
from tests.oracle import BLOCK, Disk, noise, whole

SIZE = 64 * BLOCK


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No thread can be had for commits; one entry for each time that one was wanted."""
    wanted: list[str] = []
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name == "commit":
            wanted.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return wanted


def begun(vault: Vault, limit: int) -> tuple[Session, Disk]:
    session = vault.session()
    session.limit = limit
    return session, Disk(SIZE, session.create_volume("vda", SIZE))


def test_without_a_thread_writers_make_room_themselves(
    vault: Vault, refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind, "COMMIT_BYTES", 4 * BLOCK)
    session, disk = begun(vault, 8 * BLOCK)
    for number in range(20):
        disk.write(number * BLOCK, noise(number, BLOCK))
        assert session.pending_bytes <= 8 * BLOCK
    session.close()
    assert refused
    assert vault.open_volume("main").read() == disk.data
    vault.session().close()


def test_without_a_thread_flushes_are_promised_and_the_branch_is_given_back(
    vault: Vault, refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journaling, "AFTER_FLUSHES", 0)
    session, disk = begun(vault, 8 * BLOCK)
    for number in range(20):
        disk.write(number * BLOCK, noise(number, BLOCK))
        session.device().flush()
        assert not session.unstored[0]
    assert session.journaled
    assert whole(session.device()) == disk.data
    session.close()
    assert refused
    assert vault.open_volume("main").read() == disk.data
    vault.session().close()


@pytest.mark.parametrize("short_of_room_at", [1, 2])
def test_a_writer_that_waits_for_room_is_not_left_waiting(
    short_of_room_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits that could wait for more come at once then, the first and those behind it."""
    monkeypatch.setattr(journaling, "SETTLE_SECONDS", 3600.0)
    pending = Pending()
    pending.size = 8 * BLOCK
    commits: list[int] = []

    def commit(stop: int) -> None:
        commits.append(stop)
        if len(commits) == short_of_room_at:
            pending.size = 0
            pending.stored = stop

    waited = behind.Behind(pending, lambda: 1, commit)
    with pending.mutex:
        waited.begin()
    writer = threading.Thread(target=waited.relieved, args=(8 * BLOCK,), daemon=True)
    writer.start()
    writer.join(20)
    try:
        assert not writer.is_alive()
        assert len(commits) == short_of_room_at
    finally:
        pending.size, pending.stored = 0, 1
        waited.end()
