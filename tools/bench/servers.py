"""A server that runs beside a measured client, with its own CPU and peak memory."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools.bench.commands import Command, CommandFailed, Cost, cost_of, last_words, launch

START_SECONDS = 20.0
STOP_SECONDS = 60.0


class Server:
    """A running server; ``cost`` is known once the ``serving`` block has ended."""

    cost: Cost | None = None


@contextlib.contextmanager
def serving(each: Command, listening: Path) -> Iterator[Server]:
    """Run ``each`` until the block ends; it begins when the unix socket accepts a connection.

    The server gets SIGTERM and has a minute to finish what it holds.
    """
    server = Server()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        with launch(each, scratch) as process:
            try:
                _wait_for(listening, process, each, scratch)
                yield server
            finally:
                server.cost = _stop(process)
                listening.unlink(missing_ok=True)


def _wait_for(
    listening: Path, process: subprocess.Popen[str], each: Command, scratch: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(listening))
            return
        time.sleep(0.02)
    raise CommandFailed(f"{each.argv[0]} does not listen: {last_words(scratch)}")


def _stop(process: subprocess.Popen[str]) -> Cost | None:
    """End the server and read its launcher's report; None if it had to be killed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        report, _ = process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None
    return cost_of(report)[0] if report else None
