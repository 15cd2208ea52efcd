"""A Python process of our own with a pickling channel to it, apart from its standard streams."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parents[2]


def spawn(
    module: str,
    *arguments: str,
    stderr: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[subprocess.Popen[bytes], Connection]:
    """Run ``python -m module FD arguments…`` from the repository; ``inherited`` opens its end."""
    here, there = socket.socketpair()
    with there:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(there.fileno()), *arguments],
            pass_fds=[there.fileno()], cwd=REPOSITORY, env=env,
            stdin=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    return process, Connection(here.detach())


def inherited() -> Connection:
    """The child's end of the channel that ``spawn`` made."""
    return Connection(int(sys.argv[1]))
