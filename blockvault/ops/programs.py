"""Programs of others, run quietly, and their failures as errors of ours."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

from blockvault.errors import NoSpace, ToolFailed

_SECONDS = 24 * 3600
_WATCH_SECONDS = 0.1
_FULL = ("No space left on device", "Disk quota exceeded")
"""How a program's last words end on a full disk."""


def run(
    command: list[str],
    failure: str,
    *,
    seconds: float = _SECONDS,
    watch: Callable[[], None] = lambda: None,
) -> str:
    """Run a program quietly; ``ToolFailed`` says ``failure`` and the program's last line.

    ``NoSpace`` if it says that the disk is full.  ``watch`` is called all the while, and what it
    raises ends the program.
    """
    try:
        tool = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise ToolFailed(
            f"{command[0]} is not installed; formats other than raw need it (Debian: qemu-utils)",
            kind="tool-missing",
        ) from None
    with tool:
        try:
            told, errors = _ended(tool, seconds, watch)
        except subprocess.TimeoutExpired:
            tool.kill()
            ended = f"{command[0]} was ended after {seconds:.0f} seconds"
            raise ToolFailed(f"{failure}: {ended}") from None
        except BaseException:
            tool.kill()  # whoever is interrupted would wait for its end
            raise
    if tool.returncode:
        said = errors.decode(errors="replace").strip().splitlines()
        last = said[-1] if said else f"exit {tool.returncode}"
        failed = NoSpace if last.endswith(_FULL) else ToolFailed
        raise failed(f"{failure}: {last}")
    return told.decode(errors="replace")


def _ended(
    tool: subprocess.Popen[bytes], seconds: float, watch: Callable[[], None]
) -> tuple[bytes, bytes]:
    """What a program wrote until its end, to both of its outputs; or ``TimeoutExpired``."""
    deadline = time.monotonic() + seconds
    while True:
        watch()
        left = max(0.0, deadline - time.monotonic())
        try:
            return tool.communicate(timeout=min(left, _WATCH_SECONDS))
        except subprocess.TimeoutExpired:
            if left <= _WATCH_SECONDS:
                raise
