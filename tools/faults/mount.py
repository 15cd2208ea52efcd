"""Drive a ``powerfs`` from a test: mount, let programs run, cut the power, mount again."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from tools.faults.channel import spawn
from tools.faults.disk import Image, Op
from tools.faults.powerfs import MARK

_DEADLINE = 10.0


def available() -> str:
    """Empty when FUSE can be mounted here, else what is missing."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    return "" if os.geteuid() == 0 else "mounting needs root"


def mark(mountpoint: Path | str, text: str) -> None:
    """Record that ``text`` has been promised to somebody outside the machine."""
    os.setxattr(mountpoint, MARK, text.encode())


class PowerMount:
    """A mounted ``powerfs``; a context manager that always unmounts."""

    def __init__(self, mountpoint: Path) -> None:
        self.path = mountpoint
        mountpoint.mkdir(exist_ok=True)
        self._server, self._channel = spawn("tools.faults.powerfs", str(mountpoint.resolve()))
        self._await_mount()

    def trace(self) -> list[Op]:
        return self._ask("trace")  # type: ignore[no-any-return]

    def image(self) -> Image:
        return self._ask("image")  # type: ignore[no-any-return]

    def mark(self, text: str) -> None:
        mark(self.path, text)

    def arm(self, operations: int) -> None:
        """Let the power fail by itself, in the middle of the operation after the next so many."""
        self._ask("arm", operations)

    def cut(self, seed: int) -> list[Op]:
        """Power off, and on again with what the platter kept; returns the trace until the cut.

        Every program that used the mount must be dead: its mappings are gone.
        """
        trace: list[Op] = self._ask("cut", seed)
        self._unmount()
        self._ask("on")
        self._await_mount()
        return trace

    def close(self) -> None:
        self._channel.close()  # the server unmounts, also when we die before this
        self._server.wait(_DEADLINE)

    def __enter__(self) -> PowerMount:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, *command: Any) -> Any:
        self._channel.send(command)
        return self._channel.recv()

    def _await_mount(self) -> None:
        deadline = time.monotonic() + _DEADLINE
        while not os.path.ismount(self.path):
            if self._server.poll() is not None:
                raise RuntimeError(f"powerfs ended with {self._server.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError("powerfs did not mount")
            time.sleep(0.002)

    def _unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)
