"""Make the nth write or sync of any program fail: the Python side of ``shim.c``.

    shim = Shim.build(directory)
    with shim.fault(Fault("eio", nth=3, below=vault)) as armed:
        subprocess.run(command, env=armed.env)
    armed.count, armed.hit                                      # calls so far; the one it met

A program that runs on may be given other orders with ``armed.order(fault)``; the count begins anew.

Actions: ``eio`` and ``enospc`` refuse the call; ``short`` moves half of the bytes; ``torn`` moves
half, in whole sectors of 512 bytes, and kills the process; ``kill`` kills it before the call.
``sticky`` means that all calls after the nth meet the same.  A path is below another when it starts
with it.  What happens in the kernel is not seen: writes through a mapping, and calls that a program
makes without the C library.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WRITES = ("write", "pwrite", "writev", "pwritev", "ftruncate", "fallocate")
SYNCS = ("fsync", "fdatasync", "msync")
NAMES = ("rename", "link", "mkdir")
ACTIONS = ("eio", "enospc", "short", "torn", "kill")
_SOURCE = Path(__file__).with_name("shim.c")
_CONTROL = struct.Struct("@lll40s448s1024s1024s")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """``nth`` counts from 1 over all the listed calls; 0 never fails and only counts."""

    action: str
    nth: int
    below: Path
    sticky: bool = False
    calls: tuple[str, ...] = WRITES + SYNCS + NAMES

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"{self.action!r} is not one of {ACTIONS}")

    def __str__(self) -> str:
        return f"{self.action}{' from' if self.sticky else ' at'} call {self.nth}"


class Armed:
    """``env`` runs programs under the orders of one control file."""

    def __init__(self, library: Path, control: Path, env: Mapping[str, str]) -> None:
        self._control = control
        self.env = {**env, "LD_PRELOAD": str(library), "FAULT_CONTROL": str(control)}

    def order(self, fault: Fault) -> None:
        """Count from 0 again, for this fault; no counted call may be under way."""
        with self._control.open("r+b") as file:
            file.write(_CONTROL.pack(0, fault.nth, fault.sticky, fault.action.encode(),
                                     f" {' '.join(fault.calls)} ".encode(),
                                     str(fault.below).encode(), b""))  # fmt: skip

    @property
    def count(self) -> int:
        """How many calls were counted so far."""
        return int(_CONTROL.unpack(self._control.read_bytes())[0])

    @property
    def hit(self) -> str:
        """The call that met the fault first, as "name path"; empty when none did."""
        return str(_CONTROL.unpack(self._control.read_bytes())[-1].rstrip(b"\0").decode())


class Shim:
    def __init__(self, library: Path) -> None:
        self._library = library

    @classmethod
    def build(cls, directory: Path) -> Shim:
        """Compile with ``cc``; needs nothing but a C compiler and its library."""
        library = directory / "faultshim.so"
        subprocess.run(
            ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC",
             "-o", str(library), str(_SOURCE), "-ldl"],
            check=True,
        )  # fmt: skip
        return cls(library)

    @contextmanager
    def fault(self, fault: Fault, env: Mapping[str, str] | None = None) -> Iterator[Armed]:
        with tempfile.NamedTemporaryFile() as control:
            armed = Armed(self._library, Path(control.name), os.environ if env is None else env)
            armed.order(fault)
            yield armed
