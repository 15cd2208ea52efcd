"""Disk image files as what they mean to a guest: a size, and runs of data between holes.

Raw files and block devices are read as they are.  Every other format is qemu-img's to decode: it
writes the guest's bytes into a sparse temporary file.  Which format it is, the content does not
decide (``formats``).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from blockvault.errors import BadRequest, IOFailed, NoSpace, NotFound
from blockvault.ops import formats, headers, programs
from blockvault.store import scratch

DECODED = "import-"
"""Begins the name of a directory for an image that is being decoded."""

_BLKGETSIZE64 = 0x80081272
_INFO_SECONDS = 60
_RESERVE, _RESERVE_SHARE = 256 << 20, 4
"""What stays free beside an image that is decoded: so many bytes, or this part where it is less."""


class Fingerprint(NamedTuple):
    """What tells that a file was written to while it was read."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class RawImage:
    """An open raw image; ``path`` is what messages call it."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path
        self.fingerprint = self._look()
        self.size = self.fingerprint.size

    def _look(self) -> Fingerprint:
        info = os.fstat(self.fd)
        if stat.S_ISBLK(info.st_mode):
            size = struct.unpack("Q", fcntl.ioctl(self.fd, _BLKGETSIZE64, bytes(8)))[0]
            return Fingerprint(size, 0, 0, info.st_rdev)
        return Fingerprint(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)

    def check_unchanged(self) -> None:
        """``Conflict``-like refusal when the file was written since it was opened."""
        now = self._look()
        if now == self.fingerprint:
            return
        how = "grew" if now.size > self.size else "shrank" if now.size < self.size else "changed"
        raise IOFailed(
            f"{self.path} {how} while it was read; nothing was recorded. "
            "Stop what writes to it, or import a copy",
            kind="image-changed",
        )

    def data_runs(self) -> Iterator[tuple[int, int]]:
        """``(offset, end)`` of what is not a hole, in order; all of it where holes are unknown."""
        at = 0
        while at < self.size:
            try:
                start = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                yield at, self.size
                return
            at = min(os.lseek(self.fd, start, os.SEEK_HOLE), self.size)
            if start < at:
                yield start, at

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes, zeros past the end."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill the buffer with the bytes from ``offset`` on, zeros past the end."""
        want = max(0, min(len(into), self.size - offset))
        done = 0
        while done < want:
            try:
                count = os.preadv(self.fd, [into[done:want]], offset + done)
            except OSError as error:
                raise IOFailed(f"{self.path} cannot be read: {error.strerror}") from None
            if not count:
                self.check_unchanged()
                end = offset + done
                raise IOFailed(f"{self.path} ends at {end}, before its size of {self.size}")
            done += count
        if want < len(into):
            into[want:] = bytes(len(into) - want)


def not_an_image(path: Path) -> BadRequest:
    """The error for a folder, a socket and the like."""
    return BadRequest(f"{path} is neither a file nor a block device", kind="not-an-image")


@contextmanager
def opened(path: Path, image_format: str, place: Path, allow_backing: bool) -> Iterator[RawImage]:
    """Open an image for reading; formats other than raw are decoded first, in ``place``."""
    fd = _open(path)
    try:
        if image_format == "raw":
            yield RawImage(fd, path)
            return
        source = RawImage(fd, path)
        with scratch.folder(place, DECODED) as folder:
            decoded = folder / "decoded.raw"
            _decode(path, image_format, decoded, allow_backing)
            source.check_unchanged()
            inner = os.open(decoded, os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield RawImage(inner, path)
            finally:
                os.close(inner)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        # Without O_NONBLOCK a named pipe would keep us until somebody writes to it.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"image {path} does not exist", kind="no-image") from None
    except OSError as error:
        raise IOFailed(f"image {path} cannot be opened: {error.strerror}") from None
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        raise not_an_image(path)
    return fd


def _decode(path: Path, image_format: str, target: Path, allow_backing: bool) -> None:
    _check_others(path, image_format, allow_backing)
    room = _Room(path, target.parent)
    programs.run(
        [
            *("qemu-img", "convert", "-O", "raw", "-S", "4k", "-W", "-t", "unsafe"),
            *(*formats.to_read(path, image_format), formats.file_name(target)),
        ],
        f"{path} could not be read as {image_format}",
        watch=room.check,
    )
    room.check()


def _check_others(path: Path, image_format: str, allow_backing: bool) -> None:
    """Refuse the files that an image refers to, or only what is no file; so for what it stands on.

    And that of which it does not say the format: QEMU would go by what a guest has written there.
    """
    seen: set[str] = set()
    while True:
        headers.refuse_again(path, seen)
        for other in headers.others(path, image_format):
            _refuse_other(path, other, allow_backing)
        info = image_info(path, image_format)
        others = [info[key] for key in ("backing-filename", "full-backing-filename") if key in info]
        for other in others + data_files(path, info):
            _refuse_other(path, other, allow_backing)
        if "backing-filename" not in info:
            return
        name, base_format = info["backing-filename"], info.get("backing-filename-format")
        base = headers.beside(path, path.parent, name)
        if base_format is None:
            raise BadRequest(
                f"{path} does not say in which format {name} is, on which it stands; "
                f"'qemu-img rebase -u -F FORMAT -b {name} {path}' has it say so",
                kind="backing-file",
            )
        path, image_format = base, base_format


class _Room:
    """Watches the disk while an image is decoded, however small the image is.

    It would take what the servers of the vault need for the writes of their guests.  What it will
    take cannot be known before: not every format tells which of its parts are zeros.
    """

    def __init__(self, path: Path, place: Path) -> None:
        self.path = path
        self.place = place
        self.reserve = min(_RESERVE, self._free() // _RESERVE_SHARE)

    def check(self) -> None:
        """``NoSpace`` if what is left is less than what others may need."""
        if self._free() < self.reserve:
            raise NoSpace(
                f"decoding {self.path} leaves less than the {self.reserve:,} bytes free that "
                f"others may need; nothing was changed. Make room in {self.place.parent}"
            )

    def _free(self) -> int:
        return shutil.disk_usage(self.place).free


def _refuse_other(path: Path, other: str, allow_backing: bool) -> None:
    if not allow_backing:
        raise BadRequest(
            f"{path} refers to another file, {other}; "
            "--allow-backing reads that file too, if you trust the image",
            kind="backing-file",
        )


def data_files(path: Path, info: dict[str, Any]) -> list[str]:
    """External data files and extents that an image's header names."""
    data = info.get("format-specific", {}).get("data", {})
    named = [data["data-file"]] if data.get("data-file") else []
    extents = [extent.get("filename", "") for extent in data.get("extents", [])]
    # By the whole path: a file in another folder may have the same name.
    own = os.path.realpath(path)
    return named + [name for name in extents if os.path.realpath(name) != own]


def image_info(path: Path, image_format: str) -> dict[str, Any]:
    """What ``qemu-img info`` says of an image.  What its header names is opened (``headers``)."""
    text = programs.run(
        ["qemu-img", "info", "--output=json", "-U", "-f", image_format, formats.file_name(path)],
        f"{path} is not a {image_format} image",
        seconds=_INFO_SECONDS,
    )
    info: dict[str, Any] = json.loads(text)
    return info
