"""One file that shows one state of a volume after another, for programs that know only files.

The first state is written whole, zeros as holes; for each later one only the blocks are written
that differ.  A program may have written to the file itself, as a repair would: its fingerprint
tells, and then the next state is written whole again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from blockvault.model import diff
from blockvault.model.diff import Side
from blockvault.ops import copying, manifest, silent

if TYPE_CHECKING:
    from blockvault.ops.reading import StateDevice
    from blockvault.vault import Vault


class StateFile:
    """A sparse raw file at ``path``; ``written`` counts the bytes that the states took so far."""

    def __init__(self, vault: Vault, path: Path) -> None:
        self.path = path
        self.written = 0
        self._vault = vault
        # Held open: its pin keeps the tree that the next state is compared with.
        self._shown: StateDevice | None = None
        self._fingerprint: tuple[int, int, int] | None = None

    def show(self, device: StateDevice) -> None:
        """Make the file hold exactly what ``device`` does."""
        before, self._shown = self._untouched(), None
        with copying.writing(f"{self.path} holds no whole state"):
            if before is None:
                self.path.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            with open(os.open(self.path, flags, 0o600), "wb", buffering=0) as file:
                os.ftruncate(file.fileno(), device.size)
                if before is None:
                    self.written += copying.copy_out(device, file.fileno(), silent)
                else:
                    changed = self._changed(before, device)
                    self.written += copying.write_ranges(device, file.fileno(), changed)
                # The kernel's clock stands still for milliseconds; a time of our own tells even a
                # write that follows at once.
                now = time.time_ns()
                os.utime(file.fileno(), ns=(now, now))
        self._fingerprint, self._shown = manifest.fingerprint(self.path), device

    def _untouched(self) -> StateDevice | None:
        """What the file holds, if nobody else wrote to it."""
        return self._shown if manifest.fingerprint(self.path) == self._fingerprint else None

    def _changed(self, before: StateDevice, device: StateDevice) -> Iterator[tuple[int, int]]:
        """The ranges of ``device`` that differ from the state before."""
        sides = [Side(each.size, each.tree.root, each.overlay) for each in (before, device)]
        changed = diff.changed_bytes(self._vault.objects, sides[0], sides[1], device.block_size)
        return (
            (offset, min(length, device.size - offset))
            for offset, length in changed
            if offset < device.size
        )
