"""Small files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace(
    path: Path, data: bytes, *, mode: int = 0o600, durable: bool = False, alone: bool = False
) -> None:
    """Put a file with these bytes in the place of the one at ``path``, at once for who reads it.

    The umask applies to ``mode``.  ``durable``: the bytes are on the disk before the name is, so
    that a power cut leaves either file and not an empty one.  ``alone``: nobody else writes this
    file meanwhile, so what a killed process left half done is written over.  ``OSError`` if that is
    not possible; then the old file stays, and nothing else.
    """
    fresh = path.with_name(f"{path.name}.{'new' if alone else os.getpid()}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with open(os.open(fresh, flags, mode), "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)  # the caller's, who knows of no other
        raise
