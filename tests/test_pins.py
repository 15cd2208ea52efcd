"""Guards and pins by themselves; what collections make of them is in ``ops/test_gc.py``."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from blockvault import Vault, pins
from blockvault.errors import IOFailed, NoSpace
from blockvault.ops import checkout, compare, stats
from blockvault.pins import Pin
from tests.oracle import BLOCK

TREE = (b"root" * 8, 2)


def names(vault: Path) -> list[str]:
    return [name for name, _ in pins.pinned(vault)]


def test_a_pin_keeps_until_it_is_released(tmp_path: Path) -> None:
    pin = Pin(tmp_path, [TREE], [b"object" * 5])
    assert [kept for _, kept in pins.pinned(tmp_path)] == [((TREE,), (b"object" * 5,))]
    pin.release()
    assert names(tmp_path) == []
    assert list((tmp_path / "pins").iterdir()) == []


def test_a_collection_takes_no_pin_that_is_not_locked_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does who makes it believe to have it, if a collection did."""
    flock, seen = fcntl.flock, []

    def late(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not seen:
            seen.extend(path.name[:4] for path in (tmp_path / "pins").iterdir())
            assert names(tmp_path) == []
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    pin = Pin(tmp_path, [TREE])
    assert seen == ["new."]
    assert len(names(tmp_path)) == 1
    pin.release()
    assert list((tmp_path / "pins").iterdir()) == []


def test_a_pin_that_does_not_fit_is_refused_whole(tmp_path: Path) -> None:
    _, hard = limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(NoSpace):
            Pin(tmp_path, [], [bytes(32)] * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list((tmp_path / "pins").iterdir()) == []


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``refused(errno)``: from now on no pin can be made, or no guard's file for ``epoch.``."""
    make = os.open

    def refuse(code: int, what: str = "new.") -> None:
        def limited(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
            if f"/pins/{what}" in os.fspath(path) and flags & os.O_CREAT:
                raise OSError(code, os.strerror(code))
            return make(path, flags, *arguments, **keywords)

        monkeypatch.setattr(os, "open", limited)

    return refuse


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.create(tmp_path) as made:
        with made.session() as session:
            session.create_volume("v", BLOCK).write(0, b"there")
        yield made


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, NoSpace), (errno.EACCES, IOFailed)])
def test_where_a_pin_cannot_be_made_one_reads_and_none_is_feigned(
    vault: Vault, refused: Callable[..., None], code: int, error: type[IOFailed]
) -> None:
    refused(code)
    with pytest.raises(error):
        vault.pin("main")
    assert vault.device("main").read(0, 5) == b"there"
    assert names(vault.path) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_where_nothing_can_be_written_nothing_needs_a_pin(
    vault: Vault, refused: Callable[..., None], code: int
) -> None:
    (vault.path / "data.mdb").chmod(0o400)
    vault.guards.close()
    refused(code, "")
    vault.pin("main").release()
    assert vault.device("main").read(0, 5) == b"there"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EPERM])
def test_where_no_file_can_be_made_one_reads_and_is_guarded_all_the_same(
    vault: Vault, refused: Callable[..., None], code: int
) -> None:
    """On a full disk, or where somebody else has made the file: whoever can write has a guard."""
    vault.guards.close()
    refused(code, "epoch.")
    with vault.guard():
        assert vault.device("main").read(0, 5) == b"there"
        assert not pins.drained(vault.path, 0)
    assert pins.drained(vault.path, 0)


def test_a_guard_is_of_the_epoch_in_which_it_begins(vault: Vault) -> None:
    """Though the file of the one before it is kept open: a collection knows that no more."""
    for ended in range(3):
        with vault.guard():
            assert not pins.drained(vault.path, ended)
        with vault.store.write() as writer:
            assert pins.next_epoch(writer) == ended
        assert pins.drained(vault.path, ended)
        with vault.guard():
            assert pins.drained(vault.path, ended)
            assert not pins.drained(vault.path, ended + 1)


def test_a_guard_that_cannot_be_is_told(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    vault.guards.close()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(IOFailed), vault.guard():
        pass
    assert not vault.guards.held


def test_who_may_not_enter_the_folder_of_guards_reads_and_writes_nothing(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a group that may write the vault, whose owner has made the folder."""
    make = os.open
    place = os.fspath(vault.path / "pins")

    def limited(path: Any, *arguments: Any, **keywords: Any) -> int:
        if os.fspath(path).startswith(place):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return make(path, *arguments, **keywords)

    vault.guards.close()
    monkeypatch.setattr(os, "open", limited)
    assert vault.device("main").read(0, 5) == b"there"
    checkout.execute(vault, checkout.plan(vault, "main", tmp_path / "out"))
    disk = tmp_path / "out" / "v.raw"
    assert disk.read_bytes() == vault.open_volume("main").read()
    assert not compare.diff_file(vault, "main", "v", disk).extents
    assert stats.collect(vault).branches
    with vault.guard(reading=True), pytest.raises(IOFailed, match=r"pins/epoch\.0"):
        vault.snapshot()
    assert vault.branch().tip is None


def test_who_begins_to_write_beside_who_reads_without_a_guard_has_one(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.guards.close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", Mock(side_effect=OSError(errno.EMFILE, "no descriptor is free")))
        reading = vault.guard(reading=True)
        reading.__enter__()
    assert pins.drained(vault.path, 0)
    with vault.guard():
        assert not pins.drained(vault.path, 0)
        reading.__exit__(None, None, None)
        assert not pins.drained(vault.path, 0)
    assert pins.drained(vault.path, 0)


def test_a_forked_child_takes_no_pin_away(
    tmp_path: Path, forked: Callable[[Callable[[], None]], None]
) -> None:
    pin = Pin(tmp_path, [TREE])
    forked(pin.release)
    assert len(names(tmp_path)) == 1
    pin.release()
    assert names(tmp_path) == []


def test_a_forked_child_ends_no_guard(
    vault: Vault, forked: Callable[[Callable[[], None]], None]
) -> None:
    guard = vault.guard()

    def leave() -> None:
        guard.__exit__(None, None, None)
        vault.close()

    with guard:
        forked(leave)
        assert not pins.drained(vault.path, 0)
    assert pins.drained(vault.path, 0)


@pytest.mark.parametrize("inside", [True, False])
def test_a_forked_child_keeps_no_guard(
    vault: Vault, forked: Callable[[Callable[[], None]], None], inside: bool
) -> None:
    """Of its files none stays open there, not even the one that is kept for the next guard."""

    def look() -> None:
        assert not guard_files()

    with ExitStack() as stack:
        with vault.guard():
            if inside:
                stack.enter_context(vault.guard())
        assert guard_files(), "the parent's"
        forked(look)


def guard_files() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if is_at(fd, "pins/epoch.0")]


def test_what_was_forked_meanwhile_keeps_nobody_from_the_same(tmp_path: Path) -> None:
    with pins.sole(tmp_path, "gc"):
        copies = [os.dup(int(fd)) for fd in os.listdir("/proc/self/fd") if is_at(fd, "pins/gc")]
    assert copies
    with pins.sole(tmp_path, "gc"):
        pass
    for copy in copies:
        os.close(copy)


def is_at(fd: str, path: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").endswith(path)
    except FileNotFoundError:
        return False  # that of the listing itself
