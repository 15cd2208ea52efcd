"""Volumes out of a vault: into image files, block devices and streams.

A file or block device gets its data in the order that suits the store (``copying``), a stream in
the disk's own (``streaming``).  Zeros become holes in files and real zeros elsewhere.  Formats
other than raw are qemu-img's to write, from a sparse temporary raw file.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from blockvault.device import Device
from blockvault.errors import BadRequest, Busy, Conflict, NoSpace
from blockvault.ops import Progress, copying, formats, silent, streaming, targets

if TYPE_CHECKING:
    from blockvault.ops.reading import StateDevice
    from blockvault.vault import Vault

_ZEROS = 1 << 20


class Exported(NamedTuple):
    """What an export wrote; ``path`` None means the standard output."""

    volume: str
    size: int
    data_bytes: int
    path: Path | None


def export(
    vault: Vault,
    rev: str,
    volume: str | None,
    target: Path | BinaryIO,
    *,
    format: str | None = None,  # noqa: A002 - the word every image tool uses
    force: bool = False,
    sync: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write one volume of a revision as an image; a stream gets raw bytes.

    The format is what was stated, or what the ending of the file's name says, or raw.  A file
    appears under its name only when it is complete; ``force`` lets it replace another, and
    ``sync`` waits until it is on the disk.  No target may be inside the vault.
    """
    device = vault.device(rev, volume)
    report = progress or silent
    if not isinstance(target, Path):
        if format not in (None, "raw"):
            raise BadRequest(f"a {format} image cannot be written to a stream; name a file")
        if sync:
            raise BadRequest("nobody knows when a stream is on the disk; name a file")
        data = streaming.stream(device, target, 0, device.size, report)
        return Exported(device.name, device.size, data, None)
    targets.refuse_inside(vault.path, target)
    chosen = formats.to_export(target, format)
    if target.is_block_device():
        if chosen != "raw":
            raise BadRequest(f"{target} is a block device: it gets the raw bytes, not {chosen}")
        data = _to_block_device(device, target, force, report)
    else:
        data = _to_file(device, target, chosen, force, sync, report)
    return Exported(device.name, device.size, data, target)


def _to_file(
    device: StateDevice,
    target: Path,
    image_format: str,
    force: bool,
    sync: bool,
    progress: Progress,
) -> int:
    if target.exists() and not target.is_file():
        raise BadRequest(f"{target} is neither a file nor a block device; name the file to write")
    if target.exists() and not force:
        raise targets.taken(target)
    with targets.written(target, force=force, sync=sync) as (fd, temporary):
        with copying.writing("the target was left as it was"):
            data = copying.copy_out(device, fd, progress)
            os.ftruncate(fd, device.size)
        if image_format != "raw":
            _convert(temporary, image_format)
    return data


def cat(
    vault: Vault,
    rev: str,
    volume: str | None,
    out: BinaryIO,
    *,
    offset: int = 0,
    length: int | None = None,
) -> int:
    """Write a range of a volume's bytes to a stream; return how many there were."""
    device = vault.device(rev, volume)
    if offset > device.size:
        raise BadRequest(f"offset {offset} is beyond the volume's {device.size} bytes")
    wanted = device.size - offset if length is None else min(length, device.size - offset)
    streaming.stream(device, out, offset, wanted)
    return wanted


def _to_block_device(device: StateDevice, target: Path, force: bool, progress: Progress) -> int:
    if not force:
        raise Conflict(f"{target} is a block device; --force overwrites it", kind="file-exists")
    with _alone(target) as out:
        room = out.seek(0, os.SEEK_END)
        if room < device.size:
            raise NoSpace(f"{target} holds {room:,} bytes, the volume has {device.size:,}")
        out.seek(0)
        with copying.writing(f"{target} holds a part of the volume now"):
            data = copying.copy_out(
                device, out.fileno(), lambda at, total: progress(at // 2, total)
            )
            _zero_out(device, out.fileno(), lambda at, total: progress((total + at) // 2, total))
            os.fsync(out.fileno())
    return data


def _alone(target: Path) -> BinaryIO:
    """Open a block device that nobody else has claimed: a mount, a RAID, swap."""
    try:
        return open(os.open(target, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC), "r+b")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    raise Busy(
        f"{target} is mounted or otherwise in use; nothing was written. "
        "Unmount it, or name another device",
        kind="device-busy",
    )


def _zero_out(device: Device, fd: int, progress: Progress) -> None:
    """Write zeros wherever the device has them: a block device held something else before."""
    zeros = bytes(_ZEROS)
    for extent in device.extents(0, device.size):
        end = extent.offset + extent.length
        for at in range(extent.offset, end if extent.zero else extent.offset, _ZEROS):
            copying.write_at(fd, at, zeros[: min(_ZEROS, end - at)])
            progress(at, device.size)
    progress(device.size, device.size)


def _convert(raw: Path, image_format: str) -> None:
    """Turn the raw file at ``raw`` into another format, in place."""
    from blockvault.ops import programs

    made = raw.with_name(f"{raw.name}.{image_format}")
    # qemu-img would let everybody read it, and take what somebody else has put there.
    with copying.writing("the target was left as it was"):
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        programs.run(
            [
                *("qemu-img", "convert", "-f", "raw", *formats.to_write(image_format), "-W"),
                *(formats.file_name(raw), formats.file_name(made)),
            ],
            f"the {image_format} image could not be written",
        )
        made.replace(raw)
    finally:
        made.unlink(missing_ok=True)
