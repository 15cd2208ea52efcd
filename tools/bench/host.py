"""The machine, the programs and the circumstances of a run, as far as numbers depend on them."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

LIBRARIES = ("lmdb", "zstandard", "blake3", "msgpack", "click")
LEFT_FREE = 1 << 30
ROOT = Path(__file__).parents[2]


def facts(work: Path) -> dict[str, Any]:
    """Everything about the machine that a reader needs to judge the figures."""
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": _distribution(),
        "kernel": platform.release(),
        "accelerator": _accelerator(),
        "python": platform.python_version(),
        "file_system": _file_system(work),
        "load_before": os.getloadavg()[0],
        "libraries": {name: _library(name) for name in LIBRARIES},
    }


def fill_memory(folder: Path) -> int:
    """Fill the memory that is free with a file, as on a machine that has run for long.

    A virtual machine may get memory from its host only when it is first touched.  Then whoever
    makes files longer waits for it at each page, and whoever writes over old ones does not.  Taken
    are at most the free memory but ``LEFT_FREE`` and a quarter of the disk's room; the file must
    stay for as long as anything is measured.  Return its bytes.
    """
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    disk = os.statvfs(folder)
    size = min(free - LEFT_FREE, disk.f_bavail * disk.f_frsize // 4)
    piece = bytes(1 << 24)
    with (folder / "memory").open("wb", buffering=0) as file:
        for _ in range(0, size, len(piece)):
            file.write(piece)
        os.fsync(file)
        return file.tell()


def commit() -> str:
    """The commit that is measured, with a plus sign if the working copy differs from it."""
    words = ["git", "describe", "--always", "--abbrev=10", "--dirty=+"]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _accelerator() -> str:
    """What guests run under here, as blockvault and its peers choose it."""
    from blockvault.errors import ToolFailed
    from blockvault.vm import host

    try:
        return host.accelerator()
    except ToolFailed:
        return "none"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()


def _file_system(work: Path) -> str:
    """Type of the file system that the stores are on: the longest mount point above ``work``."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, type_name, *_ = line.split()
        if work.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, type_name
    return kind


def _library(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
