"""What a disk's header tells beside its size, to be told again by the header that qemu-img writes.

That is how a VMDK is laid out, and identities: UUIDs by which a hypervisor knows a disk.
VirtualBox names each disk in its ``.vbox`` file by the UUID that the disk has itself, and does not
attach one that has another.  qemu-img gives none, or a new one to each image that it writes.  So
they are read when a disk comes in, and put into the one that goes out::

    VDI    four UUIDs in the header
    VMDK   lines of the descriptor: ddb.uuid.image="..." and others
    VHD    one in the footer, which a checksum covers, and in the copy of it at the beginning
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

_VMDK_TYPE = re.compile(rb'createType="([A-Za-z]+)"')
_VMDK_ADAPTER = re.compile(rb'ddb\.adapterType\s*=\s*"([A-Za-z]+)"')
_WRITABLE = {
    "subformat": (
        *("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"),
        "streamOptimized",
    ),
    "adapter_type": ("ide", "buslogic", "lsilogic", "legacyESX"),
}
"""What qemu-img can write; it reads more."""
_INSTEAD = {"subformat=vmfs": "subformat=monolithicFlat"}
"""A disk on a datastore is a flat one, too."""

_VDI = slice(0x188, 0x1C8)

_VMDK_LINE = re.compile(rb'^[ \t]*ddb\.uuid(?:\.\w+)?[ \t]*=[ \t]*"[0-9a-fA-F -]*"', re.MULTILINE)
_VMDK_TEXT = 1 << 16
_SPARSE, _TEXT_PLACE, _SECTOR = b"KDMV", struct.Struct("<28xQQ"), 512
"""A sparse VMDK says in which sectors its descriptor is; any other file is one."""

_VHD_FOOTER, _VHD_MARK = 512, b"conectix"
_VHD_CHECKSUM, _VHD = slice(64, 68), slice(68, 84)


# -- layout --------------------------------------------------------------------------------------


def vmdk_options(path: Path) -> str:
    """Subformat and adapter from a VMDK's descriptor: a file of its own, or inside of the disk."""
    with open(path, "rb") as file:
        head = file.read(_VMDK_TEXT)
    words = []
    if found := _VMDK_TYPE.search(head):
        words.append(f"subformat={found[1].decode()}")
    if found := _VMDK_ADAPTER.search(head):
        words.append(f"adapter_type={found[1].decode()}")
    return writable(",".join(words))


def writable(options: str) -> str:
    """Of a disk's options those with which qemu-img can write it."""
    words = [_INSTEAD.get(word, word) for word in options.split(",")]
    split = [(word, *word.partition("=")) for word in words]
    return ",".join(word for word, key, _, value in split if value in _WRITABLE.get(key, ()))


# -- identity ------------------------------------------------------------------------------------


def identity(path: Path, image_format: str) -> str:
    """What tells this disk from others, in hexadecimal; nothing where its format has no such."""
    with open(path, "rb") as file:
        if image_format == "vdi":
            return file.read(_VDI.stop)[_VDI].hex()
        if image_format == "vmdk":
            return _lines(_vmdk_text(file)[1]).hex()
        if image_format == "vpc":
            _, footer = _vhd_footers(file)[-1]
            return footer[_VHD].hex() if footer.startswith(_VHD_MARK) else ""
    return ""


def identify(path: Path, image_format: str, identity_: str) -> None:
    """Give a disk that qemu-img has written the identity that was read from another."""
    data = bytes.fromhex(identity_)
    with open(path, "r+b") as file:
        if image_format == "vdi":
            file.seek(_VDI.start)
            file.write(data)
        elif image_format == "vmdk":
            _write_lines(file, _lines(data))
        elif image_format == "vpc":
            _write_vhd(file, data)


def _lines(text: bytes) -> bytes:
    """The lines that are identities: another one might name a file."""
    return b"".join(line + b"\n" for line in _VMDK_LINE.findall(text))


def _vmdk_text(file: BinaryIO) -> tuple[int, bytes]:
    """Where a VMDK's descriptor is, and all of its room."""
    head = file.read(_SECTOR)
    at, room = 0, _VMDK_TEXT
    if head.startswith(_SPARSE) and len(head) == _SECTOR:
        at, room = (min(sectors * _SECTOR, 1 << 62) for sectors in _TEXT_PLACE.unpack_from(head))
    file.seek(at)
    return at, file.read(min(room, _VMDK_TEXT))


def _write_lines(file: BinaryIO, lines: bytes) -> None:
    """Add them to the descriptor; in a sparse file there is room behind it, for some lines more."""
    at, room = _vmdk_text(file)
    text = room.rstrip(b"\0").rstrip(b"\n") + b"\n" + lines
    if room.startswith(_SPARSE) or (at and len(text) > len(room)):
        return
    file.seek(at)
    file.write(text.ljust(len(room) if at else 0, b"\0"))


def _vhd_footers(file: BinaryIO) -> list[tuple[int, bytes]]:
    """The copy at the beginning, which a fixed disk has not, and the footer; with their places."""
    end = file.seek(0, os.SEEK_END)
    found = []
    for at in (0, max(end - _VHD_FOOTER, 0)):
        file.seek(at)
        found.append((at, file.read(_VHD_FOOTER)))
    return found


def _write_vhd(file: BinaryIO, identity: bytes) -> None:
    footers = _vhd_footers(file)
    old = footers[-1][1]
    new = bytearray(old)
    new[_VHD], new[_VHD_CHECKSUM] = identity, bytes(4)
    new[_VHD_CHECKSUM] = struct.pack(">I", ~sum(new) & 0xFFFFFFFF)
    for at, found in footers:
        if found == old:  # at the beginning of a fixed disk is what its guest wrote
            file.seek(at)
            file.write(new)
