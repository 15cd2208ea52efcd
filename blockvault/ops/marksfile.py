"""What a collection has marked, kept on disk, so that one that is killed need not mark again.

Whatever is marked was reachable when it was, and between two prunes nothing ceases to be, but for
what only a living process held on to; a node is marked after all that is under it.  So a later run
may take over any marks of an earlier one, and passes over what is marked already.  It takes over
the census with them: an object that was moved or stored anew meanwhile lies in a later frame, of
which this run says nothing.

A rebuilt index may name other copies of objects than those that were marked.  So the marks belong
to a token in ``meta``, which a rebuild removes.  The file is not synced: its hash tells whether it
is whole, and an older one is as good.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blockvault import files
from blockvault.encoding import pack, unpack
from blockvault.ids import ID_SIZE, object_id
from blockvault.ops import base
from blockvault.ops.marks import Marks, Parts
from blockvault.store import tables

if TYPE_CHECKING:
    from blockvault.store.types import Reader
    from blockvault.vault import Vault

ROW = b"marking"
"""The row of ``meta`` with the token of the marks that may be taken over."""

EVERY = 5.0
"""Seconds between two times that the marks are written.  A killed collection loses what it did
since, and what it had gathered and not marked."""

_FIELDS = 5
"""What the file holds.  One that an earlier program left may hold more or less, and is as none."""


class Resumed(NamedTuple):
    """Marks to go on from; all writes before event ``seq`` are among them.

    ``behind`` says that more may be dead than the marks tell: objects were stored since the census,
    of which it therefore says nothing, or some were marked because somebody held on to them.
    """

    marks: Marks
    seq: int
    behind: bool


class MarksFile:
    """The marks of one run, written from time to time."""

    def __init__(self, vault: Vault, marks: Marks, token: bytes, prune: int) -> None:
        """Use ``begin``."""
        self._vault = vault
        self._marks = marks
        self._token = token
        self._prune = prune
        self._written = time.monotonic()

    def note(self, seq: int) -> None:
        """Write the marks if it is time to; all writes before event ``seq`` are among them."""
        if time.monotonic() - self._written >= EVERY:
            self.write(seq)

    def write(self, seq: int) -> None:
        path = _path(self._vault)
        marks = self._marks
        data = pack([self._token, self._prune, seq, marks.pinned, marks.parts()])
        # A disk that takes nothing must still be collected.
        with contextlib.suppress(OSError):
            files.replace(path, object_id(data) + data, alone=True)
        self._written = time.monotonic()

    def remove(self) -> None:
        _path(self._vault).unlink(missing_ok=True)


def begin(vault: Vault) -> tuple[MarksFile, Resumed]:
    """The marks of a run that was killed, or new ones."""
    with vault.read() as reader:
        token, prune = reader.get(tables.META, ROW), _last_prune(reader)
    found = None if token is None else _read(vault, token, prune)
    if token is None or found is None:
        token, found = pack(secrets.token_bytes(16)), Resumed(Marks(vault), 1, behind=False)
        with vault.store.write() as writer:
            writer.put(tables.META, ROW, token)
    return MarksFile(vault, found.marks, token, prune), found


def _read(vault: Vault, token: bytes, prune: int) -> Resumed | None:
    """The marks of that token, if nothing was pruned since."""
    try:
        data = _path(vault).read_bytes()
    except OSError:
        return None
    if object_id(data[ID_SIZE:]) != data[:ID_SIZE]:
        return None
    kept = unpack(data[ID_SIZE:], "marks")
    if kept[:2] != (token, prune) or len(kept) != _FIELDS:
        return None
    seq, pinned, earlier = kept[2], kept[3], Parts(*kept[4])
    last = int.from_bytes(earlier.numbers[-8:], sys.byteorder)
    marks = Marks(vault, upto=last)
    marks.take_over(earlier)
    marks.pinned = pinned
    with vault.read() as reader:
        return Resumed(marks, seq, behind=pinned or reader.newest_frame() > last)


def _last_prune(reader: Reader) -> int:
    data = reader.get(tables.META, base.ROW)
    return 0 if data is None else int(unpack(data, "base"))


def _path(vault: Vault) -> Path:
    return vault.path / "pins" / "marks"
