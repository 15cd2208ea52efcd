"""A server that runs beside a measured client, with its own CPU and peak memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools.bench.commands import LAUNCHER, Command, CommandFailed, Cost, environment

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
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        stderr = Path(scratch, "stderr")
        process = _start(each, Path(scratch, "stdout"), stderr)
        try:
            _wait_for(listening, process, each, stderr)
            yield server
        finally:
            server.cost = _stop(process)
            listening.unlink(missing_ok=True)


def _start(each: Command, stdout: Path, stderr: Path) -> subprocess.Popen[str]:
    request = {
        "argv": each.argv,
        "env": environment(each.env),
        "cwd": str(each.cwd) if each.cwd else None,
        "stdout": str(stdout),
        "stderr": str(stderr),
    }
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(request)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait_for(listening: Path, process: subprocess.Popen[str], each: Command, stderr: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(listening))
            return
        time.sleep(0.02)
    words = stderr.read_text(errors="replace").strip().splitlines() if stderr.exists() else []
    raise CommandFailed(f"{each.argv[0]} does not listen: {words[-1][:200] if words else ''}")


def _stop(process: subprocess.Popen[str]) -> Cost | None:
    """End the server and its launcher's wait; None if it had to be killed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        output, _ = process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None
    if not output:
        return None
    report = json.loads(output)
    report.pop("status")
    return Cost(**report)
