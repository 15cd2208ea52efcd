"""What this host offers a machine: QEMU and its version, KVM or emulation, its processor, room for
memory.

Every command about machines loads this, and few ask QEMU anything: so what asks is loaded late.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockvault import files
from blockvault.errors import BadRequest, IOFailed, NoSpace, ToolFailed
from blockvault.ops import file_system_type
from blockvault.vm import rundir

BINARY = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"
_TMPFS = {"tmpfs", "ramfs", "hugetlbfs"}
_CPUINFO = Path("/proc/cpuinfo")
_TOLD_APART = ("model name", "cpu family", "model", "stepping")
_PROBE_SECONDS = 20
_ASKED = 2
"""The way of asking: raised when it changes, so that what another way found out is not believed."""
_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)


def qemu() -> str:
    """The path of QEMU; ``ToolFailed`` names the package that has it."""
    import shutil

    path = shutil.which(BINARY)
    if path is None:
        raise ToolFailed(
            f"{BINARY} is not installed (Debian: apt-get install {PACKAGE})", kind="tool-missing"
        )
    return path


@functools.cache
def version() -> str:
    """QEMU's version: ``7.2.22``."""
    return _remembered("version", _version)


def _version() -> str:
    said = _ask("--version")
    found = re.search(r"version (\d+(?:\.\d+)+)", said)
    if found is None:
        raise ToolFailed(f"{BINARY} does not tell its version: {said[:80]!r}")
    return found[1]


def series(text: str) -> str:
    """The part of a version that decides whether device states fit: ``7.2``."""
    return ".".join(text.split(".")[:2])


@functools.cache
def machine_type() -> str:
    """The versioned name of today's q35, such as ``pc-q35-7.2``."""
    return _remembered("machine", _machine_type)


def _machine_type() -> str:
    for line in _ask("-machine", "help").splitlines():
        if line.endswith("(alias of pc-q35-" + series(version()) + ")"):
            return f"pc-q35-{series(version())}"
    found = re.search(r"alias of (pc-q35-[\d.]+)", _ask("-machine", "help"))
    return found[1] if found else "q35"


@functools.cache
def accelerator() -> str:
    """``kvm`` where it really runs a guest, else ``tcg``; see ``trial``."""
    return _remembered("accelerator", _accelerator)


def _accelerator() -> str:
    from blockvault.vm import trial

    device = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return "kvm" if device and trial.runs(qemu(), _PROBE_SECONDS) else "tcg"


@functools.cache
def processor() -> str:
    """The processor, told apart from all others: ``Intel(R) Xeon(R) CPU @ 2.20GHz (6-85-7)``.

    Not by its flags: what the kernel lists among them changes with the kernel.
    """
    first, _, _ = _CPUINFO.read_text().partition("\n\n")
    told = dict(re.findall(r"^([^\t\n:]+)\t*: (.*)$", first, re.MULTILINE))
    name, *numbers = (told.get(key, "?") for key in _TOLD_APART)
    return f"{name} ({'-'.join(numbers)})"


def cache_in(folder: Path) -> None:
    """Keep what QEMU told in this directory of a memory file system: asking takes 0.3 s."""
    global _cache
    _cache = folder / "host.json"


_cache: Path | None = None


def _remembered(name: str, ask: Callable[[], str]) -> str:
    """What was found out before about this very QEMU, else what ``ask`` finds out now."""
    info = os.stat(qemu())
    kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    about = [_ASKED, qemu(), info.st_mtime_ns, info.st_size, kvm]
    known: dict[str, Any] = {}
    if _cache is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            held = json.loads(_cache.read_text())
            known = held if held.get("about") == about else {}
    if isinstance(known.get(name), str):
        return str(known[name])
    found = ask()
    if _cache is not None:
        with contextlib.suppress(OSError):
            _cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = json.dumps({**known, "about": about, name: found})
            files.replace(_cache, text.encode())
    return found


def firmware() -> tuple[Path, Path]:
    """UEFI code and an empty store of its variables."""
    for code, variables in _FIRMWARE:
        if Path(code).exists() and Path(variables).exists():
            return Path(code), Path(variables)
    raise ToolFailed(
        "UEFI firmware is not installed (Debian: apt-get install ovmf)", kind="tool-missing"
    )


def _ask(*arguments: str) -> str:
    import subprocess

    try:
        done = subprocess.run(
            [qemu(), *arguments], capture_output=True, text=True, check=False,
            timeout=_PROBE_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolFailed(f"{BINARY} does not answer: {error}") from None
    return done.stdout


# -- room for memory ---------------------------------------------------------------------------


def check_memory_place(folder: Path, memory: int) -> None:
    """Refuse a place that is no memory file system, or has no room for ``memory`` bytes.

    A file of memory takes room only where its guest has been; all the rest is promised to it.
    """
    kind = file_system_type(folder)
    if kind not in _TMPFS:
        raise BadRequest(
            f"{folder} is on {kind or 'unknown ground'}, and guest memory belongs on a tmpfs; "
            "BLOCKVAULT_RUNTIME names another directory"
        )
    try:
        info = os.statvfs(folder)
    except OSError as error:
        raise IOFailed(f"{folder} cannot be used: {error.strerror}") from None
    free = max(0, info.f_bavail * info.f_frsize - rundir.untouched(folder))
    if info.f_blocks and free < memory:
        raise NoSpace(
            f"{folder} has {free >> 20:,} MiB free beside what the machines that run may still "
            f"use, and the machine has {memory >> 20:,} MiB of memory; nothing was started: stop "
            "one, make the file system larger, or let BLOCKVAULT_RUNTIME name another"
        )
