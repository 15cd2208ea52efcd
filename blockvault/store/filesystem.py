"""What the store needs from the file system, and what it refuses to stand on.

LMDB maps ``lock.mdb`` into memory and writes to it without asking the file system for room: on a
full disk a sparse lock file kills the process with SIGBUS.  So its blocks are allocated before LMDB
sees it.  On network file systems neither the locks nor the shared map hold between machines.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
from pathlib import Path

from blockvault import files
from blockvault.errors import Unsupported

READERS = 1024
LOCK_FILE_SIZE = 128 + 64 * READERS
"""LMDB's layout: a header of two cache lines and one cache line a reader slot."""

NETWORK = frozenset((
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "orangefs",
    "pvfs2", "gfs2", "ocfs2", "9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs",
))  # fmt: skip
"""What several machines may have mounted: over a network, in a cluster, or from their host."""

FREE_SHARE = 4
"""What can be done without takes at most this part of what the disk has free."""

_GET_FLAGS, _SET_FLAGS, _NO_COPY_ON_WRITE = 0x80086601, 0x40086602, 0x00800000


def prepare_lock_file(path: Path) -> None:
    """Make sure that every block of ``lock.mdb`` is allocated; ``OSError`` if there is no room.

    Must not run in a process that has the environment open: closing a descriptor of the file
    would drop LMDB's locks on it.
    """
    descriptor = files.opened(path)
    try:
        status = os.fstat(descriptor)
        if status.st_size == 0:
            _no_copy_on_write(descriptor)
        if status.st_blocks * 512 < LOCK_FILE_SIZE:
            os.posix_fallocate(descriptor, 0, LOCK_FILE_SIZE)
    finally:
        os.close(descriptor)


def _no_copy_on_write(descriptor: int) -> None:
    # On btrfs an allocated block is still copied when written, and that copy may find no room.
    try:
        flags = fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8))
        wanted = struct.unpack("=q", flags)[0] | _NO_COPY_ON_WRITE
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("=q", wanted))
    except OSError:
        pass  # any other file system: it has no such flag, and needs none


def sync_path(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_names(directory: Path) -> None:
    """fsync a directory that may lie anywhere, as far as that can be done.

    File systems whose directories cannot be synced say EINVAL, those that virtual machines share
    with their host among them; and one that can be written to need not be readable.
    """
    try:
        sync_path(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise


def close_locked(descriptor: int) -> None:
    """Close a file that this process has locked with ``flock``, or may have.

    To close it is not enough: such a lock lasts until the last copy of the descriptor is closed,
    and a process that was forked meanwhile, if only to start a program, may have one.
    """
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def may_write(path: Path) -> bool:
    """Whether anybody may write the file or directory, and this process too.

    A file without any write bit counts as closed to root as well: a vault that is made read-only
    is then read-only for all, and may be read without locks.
    """
    return bool(os.stat(path).st_mode & 0o222) and os.access(path, os.W_OK)


def nobody_writes(path: Path) -> bool:
    """Whether no process can be writing the file: no write bit, or a read-only file system."""
    read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    return read_only or not stat.S_IMODE(os.stat(path).st_mode) & 0o222


NETWORK_IN_USER_SPACE = frozenset(
    f"fuse.{name}" for name in (
        "sshfs", "glusterfs", "s3fs", "rclone", "davfs", "gcsfuse", "ceph-fuse", "juicefs", "mfs",
        "moosefs", "vmhgfs-fuse",
    )
)  # fmt: skip


def refuse_network(path: Path) -> None:
    """``Unsupported`` if ``path`` lies on a file system that other machines may have mounted."""
    kind = file_system_type(path)
    if kind in NETWORK or kind in NETWORK_IN_USER_SPACE:
        raise Unsupported(
            f"{path} is on a file system ({kind}) that other machines may have mounted too, and a "
            "vault's locks do not hold between machines. Keep the vault on a local disk.",
            kind="network-filesystem",
        )


def file_system_type(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that holds ``path``, as the kernel names it; "" if unknown."""
    target = os.path.realpath(path) + "/"
    best, kind = -1, ""
    try:
        lines = mounts.read_bytes().decode(errors="surrogateescape").split("\n")[:-1]
    except OSError:
        return ""
    for line in lines:
        _, point, found, *_ = line.split(" ")
        prefix = _unescaped(point).rstrip("/") + "/"
        # The last mount on a point hides the earlier ones, hence >=.
        if target.startswith(prefix) and len(prefix) >= best:
            best, kind = len(prefix), found
    return kind


def _unescaped(text: str) -> str:
    """Undo the octal escapes of /proc/self/mounts (space, tab, newline, backslash)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def to_spare(directory: Path) -> int:
    """Bytes that a file which one can do without may take of the disk's free ones."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize // FREE_SHARE


def open_synced(path: Path) -> int:
    """Open a file so that each write is durable when it returns, without a sync behind it.

    Past the page cache too where the file system can: offsets, lengths and the memory written from
    are to be multiples of a page.
    """
    flags = os.O_RDWR | os.O_DSYNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags)
