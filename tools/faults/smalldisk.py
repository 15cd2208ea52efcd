"""File systems that are small enough to fill: tmpfs, and ext4, xfs or btrfs in a loop file.

They differ in how a full disk shows: tmpfs refuses the page, ext4 keeps delayed allocations that
fail at the sync, btrfs may have no room to overwrite what is already allocated.  All need root.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
SMALLEST = {"tmpfs": 1 << 20, "ext4": 4 << 20, "xfs": 300 << 20, "btrfs": 114 << 20}
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


@contextmanager
def mounted(kind: str, scratch: Path, size: int) -> Iterator[Path]:
    """A new file system of about ``size`` bytes; unmounted at the end, whoever still uses it."""
    place, image = scratch / f"{kind}-mount", scratch / f"{kind}.img"
    place.mkdir()
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    else:
        with image.open("wb") as file:
            file.truncate(max(size, SMALLEST[kind]))
        _run(*MKFS[kind], str(image))
        _run("mount", "-o", "loop", str(image), str(place))
    try:
        yield place
    finally:
        _run("umount", "-l", str(place))


def fill(directory: Path, leave: int = 0) -> Path:
    """Use up the room but for ``leave`` bytes, with one file; remove it to make room again."""
    ballast = directory / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for step in (1 << 20, 4096):
            try:
                while free(directory) - leave >= step:
                    file.write(bytes(step))
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return ballast


def free(directory: Path) -> int:
    stat = os.statvfs(directory)
    return stat.f_bavail * stat.f_frsize


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": _PATH})
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
