"""From LMDB's errors to the vault's: what the caller can do about it, in words.

LMDB reports a short write on a full disk as EIO, so on EIO the file system is asked whether it is
full.  After a failed write of a meta page the engine refuses everything with PanicError until the
environment is closed and opened again; what was acknowledged before is safe.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import lmdb

from blockvault.errors import (
    BadRequest,
    Busy,
    Damaged,
    IOFailed,
    NoSpace,
    Unsupported,
    VaultError,
)

FULL_BELOW = 4 << 20
"""A file system with fewer free bytes than this counts as full when a write failed with EIO."""

_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.IncompatibleError,
    lmdb.NotFoundError,
)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


def from_lmdb(error: lmdb.Error, path: Path) -> VaultError:
    """The error to raise for ``error`` of the environment at ``path``."""
    match error:
        case lmdb.MapFullError():
            return NoSpace(f"{path}: the vault has reached its largest size (16 TiB)")
        case lmdb.PanicError():
            return IOFailed(
                f"{path}: an earlier write to the disk failed. What was acknowledged is safe; "
                "close the vault and open it again.",
                kind="needs-reopen",
            )
        case lmdb.ReadersFullError():
            return Busy(f"{path}: too many readers; try again when some are done")
        case lmdb.BadValsizeError():
            return BadRequest("a key or value has a length that the store cannot hold")
        case lmdb.VersionMismatchError():
            return Unsupported(f"{path}: made by another version of LMDB", kind="newer-format")
    if isinstance(error, _DAMAGE):
        return Damaged(
            f"{path}: the database is damaged ({error}). Copy the vault directory before anything "
            "else; do not write to it."
        )
    # Errors that py-lmdb raises by itself, without asking LMDB, have no code.
    return from_os(OSError(getattr(error, "code", 0), str(error)), path)


def from_os(error: OSError, path: Path) -> VaultError:
    """The error to raise when the operating system refused something about ``path``."""
    code = error.errno or 0
    if code in _NO_ROOM or (code == errno.EIO and disk_is_full(path)):
        return NoSpace(
            f"{path}: the disk is full. What was acknowledged is safe; make room and try again."
        )
    if code in _NOT_ALLOWED:
        return IOFailed(f"{path}: not permitted ({os.strerror(code)})", kind="not-permitted")
    return IOFailed(f"{path}: {error.strerror or error}")


def disk_is_full(path: Path) -> bool:
    """Whether the file system of ``path`` has no room, as seen by this user."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return False
    return stat.f_bavail * stat.f_frsize < FULL_BELOW
