"""Each of LMDB's errors becomes an error that says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import lmdb
import pytest

from blockvault.errors import (
    BadRequest,
    Busy,
    Damaged,
    IOFailed,
    NoSpace,
    Unsupported,
    VaultError,
)
from blockvault.store import faults
from blockvault.store.env import LmdbStore

PATH = Path("/some/vault")


def with_code(code: int) -> lmdb.Error:
    """As the C extension raises it when the operating system refused."""
    error = lmdb.Error(f"mdb_txn_commit: {os.strerror(code)}")
    error.__dict__["code"] = code
    return error


CASES: list[tuple[lmdb.Error, type[VaultError], str]] = [
    (lmdb.MapFullError("x"), NoSpace, "16 TiB"),
    (lmdb.PanicError("x"), IOFailed, "open it again"),
    (lmdb.ReadersFullError("x"), Busy, "readers"),
    (lmdb.BadValsizeError("x"), BadRequest, "length"),
    (lmdb.VersionMismatchError("x"), Unsupported, "version"),
    (lmdb.CorruptedError("x"), Damaged, "Copy the vault directory"),
    (lmdb.PageNotFoundError("x"), Damaged, "Copy the vault directory"),
    (lmdb.InvalidError("x"), Damaged, "Copy the vault directory"),
    (with_code(errno.ENOSPC), NoSpace, "full"),
    (with_code(errno.EDQUOT), NoSpace, "full"),
    (with_code(errno.EACCES), IOFailed, "not permitted"),
    (with_code(errno.EROFS), IOFailed, "not permitted"),
    (with_code(errno.EIO), IOFailed, "Input/output"),
    (lmdb.TxnFullError("x"), IOFailed, "x"),
    (lmdb.Error("already open"), IOFailed, "already open"),
]


@pytest.mark.parametrize(("error", "kind", "words"), CASES, ids=lambda v: repr(v)[:40])
def test_lmdb_errors(error: lmdb.Error, kind: type[VaultError], words: str) -> None:
    failed = faults.from_lmdb(error, PATH)
    assert type(failed) is kind
    assert words in failed.message


def test_every_error_of_lmdb_has_a_translation() -> None:
    classes = [
        value
        for value in vars(lmdb).values()
        if isinstance(value, type) and issubclass(value, lmdb.Error)
    ]
    assert len(classes) > 20
    for kind in classes:
        assert isinstance(faults.from_lmdb(kind("x"), PATH), VaultError)


def test_an_io_error_on_a_full_disk_means_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = with_code(errno.EIO)
    assert type(faults.from_lmdb(error, tmp_path)) is IOFailed
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*real[:4], 3, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert type(faults.from_lmdb(error, tmp_path)) is NoSpace


def test_errors_inside_transactions_are_translated(store: LmdbStore) -> None:
    def fail(error: lmdb.Error, write: bool) -> None:
        with store.write() if write else store.read():
            raise error

    for write in (False, True):
        with pytest.raises(Damaged):
            fail(lmdb.CorruptedError("x"), write)
    with store.write() as writer:
        writer.put("refs", b"k", b"v")
