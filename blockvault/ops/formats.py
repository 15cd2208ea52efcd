"""Formats of disk images: which one a file has, and what qemu-img is told to read and write it.

The format is stated or taken from the file name, never probed from the content: a guest can write a
qcow2 header into a raw disk, and a prober would then open whatever file that header names.
"""

from __future__ import annotations

from pathlib import Path

from blockvault.errors import BadRequest

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc")
"""What can be imported and exported, by qemu's names; ``vpc`` is VirtualPC's and Azure's vhd."""

_SUFFIXES = {".qcow2": "qcow2", ".vmdk": "vmdk", ".vdi": "vdi", ".vhdx": "vhdx", ".vhd": "vpc"}
_RAW_SUFFIXES = ("", ".img", ".raw", ".bin", ".ext4", ".iso", ".dd")
_MARKS = {
    "qcow2": (0, b"QFI\xfb"),
    "vmdk": (0, b"KDMV"),
    "vdi": (0x40, b"\x7f\x10\xda\xbe"),
    "vhdx": (0, b"vhdxfile"),
    "vpc": (0, b"conectix"),
}
"""Where each format has its mark, and what that is."""
_HEAD = 512
_PER_DISK = "for a disk of 'vm create', NAME=FORMAT:FILE"


# -- which one ---------------------------------------------------------------------------------


def to_import(path: Path, stated: str | None) -> str:
    """The format of an image to read: what was stated, or what the file name's ending says.

    The content decides nothing.  But a file that is named as a raw one and begins as another is
    refused until somebody states what it is: whoever named it may have meant any image.
    """
    if stated is not None:
        return _known(stated)
    named = by_name(path)
    begins = _begins_as(path) if named == "raw" else None
    if begins is not None:
        raise BadRequest(
            f"{path} begins as a {begins} image, which its name does not say; say --format "
            f"{begins}, or --format raw if the disk itself begins so ({_PER_DISK})",
            kind="format-unknown",
        )
    return named


def to_export(path: Path, stated: str | None) -> str:
    """The format of a new image: what was stated, or its ending says; else raw."""
    return _SUFFIXES.get(path.suffix.lower(), "raw") if stated is None else _known(stated)


def by_name(path: Path) -> str:
    """What the ending of a name says, or that it is a block device's; no file is opened."""
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if suffix in _RAW_SUFFIXES or path.is_block_device():
        return "raw"
    raise BadRequest(
        f"the format of {path} is not clear from its name; say it with --format "
        f"({', '.join(FORMATS)}; {_PER_DISK})",
        kind="format-unknown",
    )


def _known(stated: str) -> str:
    if stated not in FORMATS:
        raise BadRequest(f"unknown format '{stated}': use one of {', '.join(FORMATS)}")
    return stated


def _begins_as(path: Path) -> str | None:
    """The format whose mark a file has.  A block device is raw, whatever its guest wrote there."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None  # whoever opens it to read it all says why that is not possible
    for image_format, (at, mark) in _MARKS.items():
        if head.startswith(mark, at):
            return image_format
    return None


# -- qemu-img's arguments ----------------------------------------------------------------------


def to_read(path: Path, image_format: str) -> list[str]:
    """Arguments by which qemu-img reads all of an image.

    Of a VHD it would believe the geometry, which most programs round down, and leave out the end.
    """
    if image_format != "vpc":
        return ["-f", image_format, file_name(path)]
    name = str(path.absolute()).replace(",", ",,")
    size = "force_size_calc=current_size"
    return ["--image-opts", f"driver=vpc,{size},file.driver=file,file.filename={name}"]


def to_write(image_format: str) -> list[str]:
    """Arguments by which qemu-img writes an image that is as large as what it is to hold.

    A VHD would have the next larger size that a geometry can say.
    """
    return ["-O", image_format, *(["-o", "force_size=on"] if image_format == "vpc" else [])]


def file_name(path: Path) -> str:
    """A file name that qemu cannot take for a protocol (``nbd:…``) or an option.

    With ``..`` as it stands, since that may be behind a link.
    """
    return f"file:{path.absolute()}"
