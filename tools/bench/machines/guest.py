"""The guest's side of ``tools.bench.machines``: when it is up, and how it is made ready."""

from __future__ import annotations

import time

from tools.bench.commands import flush_disk
from tools.guest.console import Console

PAUSE = 1.0
"""Seconds that a guest runs before it is measured, after it stood still."""


def answers(serial: str) -> int:
    """The guest's counter: it is up when it tells."""
    with Console(serial) as console:
        return console.counter()


def prepare(serial: str, fill: int) -> None:
    """Wait for a shell, and until the guest holds ``fill`` MiB that nothing can compress; what was
    written until then is on the disk, and burdens nobody.
    """
    with Console(serial) as console:
        console.wait_for_shell()
        if fill:
            console.run(f"dd if=/dev/urandom of=/run/noise bs=1M count={fill}", seconds=600)
        flush_disk()
        time.sleep(5)
