"""The disk of ``disk.py`` as a FUSE file system, for programs as they are.

Everything lives in memory.  Each operation is applied to a ``Disk`` and appended to the trace, in
one order, under one lock.  The server mounts in its main thread and obeys commands on a channel
(``mount.py`` speaks for it):

    trace             → the operations so far
    arm N             → after N more operations the power is off: every call fails with EIO
    cut SEED          → power off now; choose what the platter kept (crash.choose)
    on                → mount again with what was kept, and an empty trace
    image             → what programs see now

A program says what it has promised with ``setxattr(mount point, "user.mark", text)``; the mark
takes its place in the trace.  Mapped pages stay coherent because writes go straight through.
A sync that the kernel adds after a write through an O_DSYNC descriptor is dropped: such a write
makes itself durable and nothing else.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy  # type: ignore[import-untyped, unused-ignore]  # the variable above says which library

from tools.faults.channel import inherited
from tools.faults.crash import choose
from tools.faults.disk import (
    ROOT,
    Disk,
    Image,
    Make,
    Mark,
    Move,
    Op,
    Punch,
    Remove,
    Resize,
    Sync,
    Write,
)

MARK = "user.mark"
_DSYNC = os.O_DSYNC
_PUNCH_HOLE = 0x02 | 0x01  # and keep the size


def _fail(number: int) -> OSError:
    return mfusepy.FuseOSError(number)  # type: ignore[no-any-return]


class PowerFS(mfusepy.Operations):  # type: ignore[misc]
    """Path-based FUSE operations over a ``Disk``.  Open files are known by their inode."""

    use_ns = True

    def __init__(self, disk: Disk) -> None:
        self.guard = threading.RLock()
        self.disk = disk
        self.trace: list[Op] = []
        self.power = True
        self.operations_left: int | None = None
        self._modes: dict[int, int] = {}
        self._next_ino = 1 + max((ROOT, *disk.now.dirs, *disk.now.files))
        self._handles: dict[int, tuple[int, bool]] = {}
        self._next_handle = 1

    # -- the trace

    def record(self, op: Op) -> None:
        if not self.power:
            raise _fail(errno.EIO)
        if self.operations_left is not None and not isinstance(op, Mark):
            if self.operations_left == 0:
                self.disk.begin(op)  # in flight when the light went out
                self.power = False
                raise _fail(errno.EIO)
            self.operations_left -= 1
        self.disk.apply(op)
        self.trace.append(op)

    def _powered(self) -> Image:
        if not self.power:
            raise _fail(errno.EIO)
        return self.disk.now

    # -- names

    def _find(self, path: str) -> int:
        image, ino = self._powered(), ROOT
        for name in filter(None, path.split("/")):
            if ino not in image.dirs or name not in image.dirs[ino]:
                raise _fail(errno.ENOENT)
            ino = image.dirs[ino][name]
        return ino

    def _place(self, path: str) -> tuple[int, str]:
        parent, _, name = path.rpartition("/")
        return self._find(parent), name

    def _make(self, path: str, mode: int, *, directory: bool) -> int:
        parent, name = self._place(path)
        if name in self.disk.now.dirs[parent]:
            raise _fail(errno.EEXIST)
        ino, self._next_ino = self._next_ino, self._next_ino + 1
        self.record(Make(ino, parent, name, directory))
        self._modes[ino] = mode & 0o7777
        return ino

    def mkdir(self, path: str, mode: int) -> int:
        with self.guard:
            self._make(path, mode, directory=True)
        return 0

    def create(self, path: str, mode: int, flags: int) -> int:
        with self.guard:
            return self._handle(self._make(path, mode, directory=False), flags)

    def link(self, target: str, source: str) -> int:
        with self.guard:
            ino, (parent, name) = self._find(source), self._place(target)
            if name in self.disk.now.dirs[parent]:
                raise _fail(errno.EEXIST)
            self.record(Make(ino, parent, name))
        return 0

    def unlink(self, path: str) -> int:
        with self.guard:
            self._find(path)
            self.record(Remove(*self._place(path)))
        return 0

    def rmdir(self, path: str) -> int:
        with self.guard:
            if self.disk.now.dirs[self._find(path)]:
                raise _fail(errno.ENOTEMPTY)
            self.record(Remove(*self._place(path)))
        return 0

    def rename(self, old: str, new: str) -> int:
        with self.guard:
            ino, place, new_place = self._find(old), self._place(old), self._place(new)
            there = self.disk.now.dirs[new_place[0]].get(new_place[1])
            if there is not None and self.disk.now.dirs.get(there):
                raise _fail(errno.ENOTEMPTY)
            self.record(Move(ino, *place, *new_place))
        return 0

    def readdir(self, path: str, fh: int) -> list[str]:
        with self.guard:
            return [".", "..", *self._powered().dirs[self._find(path)]]

    # -- files

    def _handle(self, ino: int, flags: int) -> int:
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._handles[handle] = (ino, flags & _DSYNC == _DSYNC)
        return handle

    def open(self, path: str, flags: int) -> int:
        with self.guard:
            ino = self._find(path)
            if flags & os.O_TRUNC and self.disk.now.files[ino]:
                self.record(Resize(ino, 0))
            return self._handle(ino, flags)

    def release(self, path: str, fh: int) -> int:
        with self.guard:
            self._handles.pop(fh, None)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self.guard:
            return bytes(self._powered().files[self._handles[fh][0]][offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self.guard:
            ino, durable = self._handles[fh]
            self.record(Write(ino, offset, data, durable))
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        with self.guard:
            ino = self._find(path) if fh is None else self._handles[fh][0]
            self.record(Resize(ino, length))
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        if mode not in (0, _PUNCH_HOLE):
            raise _fail(errno.EOPNOTSUPP)
        with self.guard:
            ino = self._handles[fh][0]
            if mode:
                self.record(Punch(ino, offset, size))
            elif offset + size > len(self._powered().files[ino]):
                self.record(Resize(ino, offset + size))
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        with self.guard:
            ino, durable = self._handles[fh]
            if not durable:
                self.record(Sync(ino))
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        with self.guard:
            self.record(Sync(self._find(path)))
        return 0

    # -- attributes

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        with self.guard:
            image = self._powered()
            ino = self._find(path) if fh is None else self._handles[fh][0]
            if ino in image.dirs:
                return {"st_mode": stat.S_IFDIR | self._modes.get(ino, 0o700), "st_nlink": 2}
            size = len(image.files[ino])
            return {
                "st_mode": stat.S_IFREG | self._modes.get(ino, 0o600),
                "st_nlink": 1,
                "st_size": size,
                "st_blocks": (size + 511) // 512,
            }

    def chmod(self, path: str, mode: int) -> int:
        with self.guard:
            self._modes[self._find(path)] = mode & 0o7777
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        free = 1 << 20
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": free, "f_bfree": free,
                "f_bavail": free, "f_files": free, "f_ffree": free, "f_namemax": 255}  # fmt: skip

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        if name != MARK:
            raise _fail(errno.EOPNOTSUPP)
        with self.guard:
            self.record(Mark(bytes(value).decode()))
        return 0


class Server:
    """Mounts again and again in the main thread, while commands arrive in another."""

    def __init__(self, channel: Connection, mountpoint: str) -> None:
        self._channel = channel
        self._mountpoint = mountpoint
        self._fs = PowerFS(Disk())
        self._mount = threading.Event()
        self._mount.set()

    def run(self) -> None:
        threading.Thread(target=self._obey, daemon=True).start()
        while True:
            self._mount.wait()
            self._mount.clear()
            mfusepy.FUSE(
                self._fs, self._mountpoint, foreground=True, nothreads=True, fsname="powerfs",
                hard_remove=True, kernel_cache=True,
            )  # fmt: skip

    def _obey(self) -> None:
        while True:
            try:
                command, *arguments = self._channel.recv()
            except EOFError:
                subprocess.run(["umount", "-l", self._mountpoint], stderr=subprocess.DEVNULL)
                os._exit(0)  # whoever still uses the mount, it is over
            self._channel.send(getattr(self, f"do_{command}")(*arguments))

    def do_trace(self) -> list[Op]:
        with self._fs.guard:
            return list(self._fs.trace)

    def do_image(self) -> Image:
        with self._fs.guard:
            return self._fs.disk.now

    def do_arm(self, operations: int) -> None:
        with self._fs.guard:
            self._fs.operations_left = operations

    def do_cut(self, seed: int) -> list[Op]:
        with self._fs.guard:
            disk = self._fs.disk
            self._fs.power = False
            disk.restart(disk.survivors(choose(disk.pending, random.Random(seed))))
            return list(self._fs.trace)

    def do_on(self) -> None:
        self._fs = PowerFS(self._fs.disk)
        self._mount.set()


if __name__ == "__main__":
    Server(inherited(), sys.argv[2]).run()
