"""What other files an image's header names, found before qemu-img opens the image.

For qemu-img opens what is named, whatever it is asked to do: a pipe that holds it up, a device, a
server at the other end of a URL.  A VMDK names its extents in text, as QEMU reads it::

    RW 4192256 SPARSE "disk-s001.vmdk"

The text is a file of its own, or lies in a sparse one that claims to have no capacity; and an
extent that has a header may be such a one again.  A qcow2 image may have its data in another file.
What an image stands on is not opened by who asks for its description, so that tells of it.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from blockvault.errors import BadRequest

_SPARSE, _OLD_SPARSE = b"KDMV", b"COWD"
_CAPACITY, _TEXT_AT = slice(12, 20), slice(28, 36)
"""Of a sparse VMDK's header, in sectors: what it holds, and where the text in it begins."""
_SECTOR = 512
_TEXT = 1 << 20
"""Bytes of text that QEMU reads at most."""
_EXTENT = re.compile(rb'\b(?:RW|RDONLY|NOACCESS)\s+[+-]?\d+\s*(\S{1,10}?)\s*"([^"\r\n\0]{1,511})')
_PLAIN, _HEADED = {b"FLAT", b"VMFS"}, {b"SPARSE", b"VMFSSPARSE", b"SESPARSE"}
"""The types of extents: what a guest has written and nothing else, and what a header describes."""
_QCOW2, _VERSION, _FEATURES, _DATA_FILE = b"QFI\xfb", slice(4, 8), slice(72, 80), 4
_LENGTH = slice(100, 104)
_EXTENSION, _NAMES_DATA = struct.Struct(">4sI"), b"DATA"
_EXTENSIONS = 2 << 20
"""Bytes in which a qcow2 header and its extensions lie: a cluster at most."""


def others(path: Path, image_format: str) -> Iterator[str]:
    """The files beside itself that an image consists of; none is opened before it was told.

    ``BadRequest`` if it names anything but files and block devices.
    """
    if image_format == "vmdk":
        yield from _extents(path, path.parent, {os.path.realpath(path)})
    elif image_format == "qcow2":
        for name in _data_files(_read(path, 0, _EXTENSIONS)):
            yield str(beside(path, Path(), name))  # as QEMU has it


def beside(image: Path, folder: Path, name: str) -> Path:
    """What an image in this folder means by a name; ``BadRequest`` if that is no file.

    Behind ``file:`` QEMU looks from where it was started.
    """
    plain = name.removeprefix("file:")
    return _file(image, folder if plain == name else Path(), plain)


def _file(image: Path, folder: Path, name: str) -> Path:
    """A file by its path from a folder; ``BadRequest`` if it is none.

    That is what QEMU takes for a protocol, and what may do something when it is opened.
    """
    other = folder / name
    fit = ":" not in name.partition("/")[0]
    try:
        mode = other.stat().st_mode
        fit = fit and (stat.S_ISREG(mode) or stat.S_ISBLK(mode))
    except OSError:
        pass  # nothing is opened; qemu-img says what is missing
    if not fit:
        raise BadRequest(
            f"{image} refers to {name}, which is neither a file nor a block device",
            kind="backing-file",
        )
    return other


def _data_files(head: bytes) -> Iterator[str]:
    """Where the data of a qcow2 image is, if it is not in the image."""
    version, features = (int.from_bytes(head[part], "big") for part in (_VERSION, _FEATURES))
    if not head.startswith(_QCOW2) or version < 3 or not features & _DATA_FILE:
        return
    at = int.from_bytes(head[_LENGTH], "big")
    while at + _EXTENSION.size <= len(head):
        kind, length = _EXTENSION.unpack_from(head, at)
        at += _EXTENSION.size
        if kind == _NAMES_DATA:
            yield os.fsdecode(head[at : at + length].partition(b"\0")[0])
        elif not any(kind):
            return
        at += -(-length // 8) * 8


def _extents(path: Path, folder: Path, seen: set[str]) -> Iterator[str]:
    """The extents of a VMDK, and what those name in their turn: in the folder of the first one."""
    for kind, name in _EXTENT.findall(_text(path)):
        _refuse_unknown(path, kind)
        other = _file(path, folder, os.fsdecode(name))
        if kind not in _PLAIN and _read(other, 0, 4) == _SPARSE and _text(other):
            refuse_again(other, seen)
            yield str(other)
            yield from _extents(other, folder, seen)
        elif os.path.realpath(other) not in seen:
            yield str(other)


def _refuse_unknown(image: Path, kind: bytes) -> None:
    """``BadRequest`` for an extent of which nobody knows what QEMU would look for in it."""
    if kind not in _PLAIN | _HEADED:
        raise BadRequest(
            f"{image} has an extent of an unknown type, {os.fsdecode(kind)}", kind="backing-file"
        )


def refuse_again(image: Path, seen: set[str]) -> None:
    """``BadRequest`` for an image that was seen before: QEMU goes round in circles."""
    real = os.path.realpath(image)
    if real in seen:
        raise BadRequest(f"{image} refers to itself, maybe by way of others")
    seen.add(real)


def _text(path: Path) -> bytes:
    """What says of which extents a VMDK consists; nothing where QEMU does not ask."""
    head = _read(path, 0, _SECTOR)
    if head.startswith(_OLD_SPARSE) or (head.startswith(_SPARSE) and any(head[_CAPACITY])):
        return b""
    at = int.from_bytes(head[_TEXT_AT], "little") if head.startswith(_SPARSE) else 0
    return _read(path, at * _SECTOR % (1 << 64), _TEXT)


def _read(path: Path, offset: int, length: int) -> bytes:
    """Bytes of a file, those that are there; qemu-img says why one cannot be opened."""
    with suppress(FileNotFoundError, PermissionError), open(path, "rb") as file:
        if offset <= file.seek(0, os.SEEK_END):
            file.seek(offset)
            return file.read(length)
    return b""
