"""A destroyed meta page, written anew from the other one.

LMDB keeps two meta pages and refuses the file if one of them is destroyed, although the other names
a whole database: the newest, or the one before it.  The head file tells which: if the commit that
it knows is lost, the vault says so when it is opened.  What was there is kept in a file beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

from blockvault import files
from blockvault.store import compaction, faults, filesystem, pages, shared

_NUMBER = 8
"""A page begins with its own number, 8 bytes."""
_TXN_AT = 144
"""Where a meta page has its transaction number, 8 bytes: even in page 0, odd in page 1."""


def damaged_meta(path: Path) -> int | None:
    """The number of the one meta page that is destroyed; None if both are sound, or neither."""
    with open(path / shared.DATA, "rb") as file:
        sound = [pages.read_meta(file.fileno(), number) is not None for number in (0, 1)]
    return sound.index(False) if sound.count(False) == 1 else None


def rescue_meta(path: Path) -> bool:
    """Write a destroyed meta page anew; False if there is none.

    ``Busy`` if the vault is open, ``IOFailed`` if the disk refuses; the same call works later.
    """
    number = damaged_meta(path)
    if number is None:
        return False
    try:
        with compaction.alone(path):
            _write_anew(path, number)
    except OSError as error:
        raise faults.from_os(error, path) from error
    return True


def _write_anew(path: Path, number: int) -> None:
    with open(path / shared.DATA, "r+b") as file:
        whole = pages.read_meta(file.fileno(), 1 - number)
        assert whole is not None
        size = whole.page_size
        before = os.pread(file.fileno(), size, number * size)
        files.replace(path / f"meta-{number}.damaged", before, durable=True, alone=True)
        filesystem.sync_path(path)  # what was there is safe before something else is
        good = os.pread(file.fileno(), size, (1 - number) * size)
        # As the commit before it: LMDB goes on from the page that is whole.
        txn_id = max(whole.txn_id - 1, 0).to_bytes(8, "little")
        own = number.to_bytes(_NUMBER, "little")
        file.seek(number * size)
        file.write(own + good[_NUMBER:_TXN_AT] + txn_id + good[_TXN_AT + 8 :])
        file.flush()
        os.fsync(file.fileno())
