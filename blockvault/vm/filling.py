"""What a machine starts from, brought out of the vault: its memory and its boot files.

Memory takes longest of all, so it is written on threads of its own while everything else begins.

A kernel is the same for all machines that came from one.  So boot files lie under the name of their
content in one folder beside the run directories, and each machine has hard links to them: a clone
finds them there.  One that no machine has any more goes with the next machine that ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from blockvault.errors import IOFailed, VaultError
from blockvault.ops import attachments
from blockvault.vm.machine import BOOT_FILES

if TYPE_CHECKING:
    from pathlib import Path

    from blockvault.vault import Vault
    from blockvault.vm.rundir import RunDir


class Filling:
    """Memory on its way into its file; in a ``with``, whose end waits for it whatever happens."""

    def __init__(self, vault: Vault, memory: Any, run: RunDir) -> None:
        self._vault = vault
        self._memory = memory
        self._error: Exception | None = None
        self._fd = os.open(run.memory, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        # QEMU maps the whole size when it starts.
        os.ftruncate(self._fd, memory.size)
        self._thread = threading.Thread(target=self._fill, name="memory")

    def _fill(self) -> None:
        try:
            attachments.restore(self._vault, self._memory, self._fd)
        except Exception as error:
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        os.close(self._fd)

    def finish(self) -> None:
        """Wait until all of it is there; raises what went wrong."""
        self._thread.join()
        if isinstance(self._error, VaultError):
            raise self._error
        if self._error is not None:
            raise IOFailed(f"memory could not be restored: {self._error}")


def beside(
    vault: Vault, memory: Any, run: RunDir
) -> contextlib.AbstractContextManager[Filling | None]:
    """Begin to fill a machine's memory from what was saved of it; None if nothing was."""
    return contextlib.nullcontext() if memory is None else Filling(vault, memory, run)


def write_boot_files(vault: Vault, files: Iterable[Any], run: RunDir) -> None:
    """Kernel and initrd as files, for QEMU to load."""
    run.boot_files.mkdir(mode=0o700, exist_ok=True)
    for each in files:
        if each.name in BOOT_FILES:
            _write(vault, each, run.boot_file(each.name), run.boot_files)


def _write(vault: Vault, file: Any, target: Path, folder: Path) -> None:
    shared = folder / f"{file.root.hex()}-{file.size}"
    try:
        os.link(shared, target)
    except FileNotFoundError:
        target.write_bytes(attachments.content(vault, [file], file.name))
        with contextlib.suppress(FileExistsError):
            os.link(target, shared)


def drop_unused(folder: Path) -> None:
    """Remove the boot files that no machine has a link to.

    One that is being written has its machine's name first, and this folder's after that.
    """
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if entry.stat().st_nlink == 1:
                os.unlink(entry)
