"""A vault directory made at once: it appears whole under its name, or not at all.

Everything is written and committed in a temporary directory beside the target, synced, and renamed
into place.  An interrupted creation leaves no vault, never a broken one; what it does leave goes
with the next.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import lmdb

from blockvault import files
from blockvault.errors import Conflict, NotFound
from blockvault.store import filesystem, rows, shared, tables
from blockvault.store import format as fmt
from blockvault.store.types import Options

_BUILDING = ".new-"


@contextlib.contextmanager
def in_place(path: Path) -> Iterator[Path]:
    """A directory that becomes ``path`` when the block ends well; else it is gone.

    ``Conflict`` if something is there already.
    """
    import shutil
    import tempfile

    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise Conflict(f"{path} already exists; nothing was changed")
    if not path.parent.is_dir():
        raise NotFound(f"{path.parent} is not a directory")
    _sweep(path)
    building = Path(tempfile.mkdtemp(prefix=path.name + _BUILDING, dir=path.parent))
    try:
        # Whoever sweeps may be looking at the directory just now, and lets go of it.
        with files.locked(building, math.inf):
            yield building
            for name in (shared.DATA, shared.LOCK, shared.HEAD, "."):
                filesystem.sync_path(building / name)
            _rename(building, path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    filesystem.sync_path(path.parent)


def make_tables(path: Path, options: Options) -> None:
    """The database in an empty directory: all tables, and what ``meta`` says of a new vault."""
    filesystem.prepare_lock_file(path / shared.LOCK)
    environment = shared.open_lmdb(path, readonly=False, lock=True)
    try:
        with environment.begin(write=True) as txn:
            for name in (*tables.KEYED, *tables.NUMBERED):
                flags = tables.FLAGS.get(name, {})
                database = environment.open_db(name.encode(), txn=txn, **flags)
                if name not in tables.CHECKED:
                    continue
                table = rows.rows_of(cast("lmdb.Cursor[memoryview]", txn.cursor(database)), name)
                table.begin()
                for key, value in fmt.to_meta(options).items() if name == tables.META else ():
                    table.put(key, value)
    finally:
        environment.close()


def _rename(building: Path, path: Path) -> None:
    try:
        os.rename(building, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise Conflict(f"{path} was made by somebody else meanwhile") from None
        raise


def _sweep(path: Path) -> None:
    """Remove what creations of this vault left behind when they were killed.

    A directory that is still empty may have been made this moment and not be locked yet.
    """
    import shutil

    for left in path.parent.glob(glob.escape(path.name + _BUILDING) + "*"):
        with contextlib.suppress(OSError), files.locked(left, 0) as ours:
            if ours and any(left.iterdir()):
                shutil.rmtree(left)
