"""Make the nth write or sync of any program fail: the Python side of ``shim.c``.

    shim = Shim.build(directory)
    with shim.fault(Fault("eio", nth=3, below=vault)) as armed:
        subprocess.run(command, env=armed.env)
    armed.count, armed.hit                                      # calls so far; the one it met

Actions: ``eio`` and ``enospc`` refuse the call; ``short`` moves half of the bytes; ``torn`` moves
half and kills the process; ``kill`` kills it before the call.  ``sticky`` means that all calls
after the nth meet the same.  A path is below another when it starts with it.  What happens in the
kernel is not seen: writes through a mapping, and calls that a program makes without the C library.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

WRITES = ("write", "pwrite", "writev", "pwritev", "ftruncate", "fallocate")
SYNCS = ("fsync", "fdatasync", "msync")
NAMES = ("rename", "link", "mkdir")
ACTIONS = ("eio", "enospc", "short", "torn", "kill")
_SOURCE = Path(__file__).with_name("shim.c")
_SHARED = 4096


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


@dataclass
class Armed:
    """``env`` runs a program under the fault; ``count`` is how many calls there were so far."""

    env: dict[str, str] = field(repr=False)
    counter: Path = field(repr=False)

    @property
    def count(self) -> int:
        return int.from_bytes(self.counter.read_bytes()[:8], "little")

    @property
    def hit(self) -> str:
        """The call that met the fault first, as "name path"; empty when none did."""
        return self.counter.read_bytes()[8:].split(b"\0")[0].decode()


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
        with tempfile.NamedTemporaryFile() as counter:
            counter.truncate(_SHARED)
            yield Armed(
                {
                    **(os.environ if env is None else env),
                    "LD_PRELOAD": str(self._library),
                    "FAULT_COUNTER": counter.name,
                    "FAULT_NTH": str(fault.nth),
                    "FAULT_ACTION": fault.action,
                    "FAULT_STICKY": str(int(fault.sticky)),
                    "FAULT_CALLS": f" {' '.join(fault.calls)} ",
                    "FAULT_PATH": str(fault.below),
                },
                Path(counter.name),
            )
