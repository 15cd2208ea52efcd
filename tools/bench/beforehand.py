"""What would come to nothing in the end is refused at the beginning: nobody wants to measure for
hours what cannot be written down.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def writable(file: Path) -> None:
    """``ValueError`` unless a file can be written there, whether one is there already or not."""
    if file.is_dir():
        raise ValueError(f"{file}: a folder, not a file")
    if file.exists() and not file.is_file():
        raise ValueError(f"{file}: not a file that can be replaced")
    if file.exists() and not os.access(file, os.W_OK):
        raise ValueError(f"{file}: not writable")
    writable_folder(file.parent)


def writable_folder(folder: Path) -> None:
    """``ValueError`` unless a file can be made in it; one is made to see."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder}: not writable: {error.strerror}") from None


def in_words(error: Exception) -> str:
    """The file first, where there is one, then what is wrong with it."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    return f"{error.filename}: {error.strerror}"
