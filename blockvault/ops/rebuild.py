"""rebuild: the projections, dropped and replayed from the log.

The log is the truth and the projections follow from it byte for byte, so a rebuild is also the
check: replay into memory, compare, and only then write the tables that differ anew, whole, since
the rows of a table name each other; in one transaction.  The index of objects is compared with the
frames in the same way.  Of the helper tables ``runs`` and ``dead``, one that is damaged is emptied:
what they say is found out again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from blockvault import pins
from blockvault.errors import Damaged
from blockvault.ids import object_id
from blockvault.model.projections import TABLES
from blockvault.ops import Progress, entries, marksfile, silent
from blockvault.ops.replaying import ReplayedTables
from blockvault.store import frames, tables

if TYPE_CHECKING:
    from blockvault.store.types import Reader
    from blockvault.vault import Vault

Change = tuple[str, bytes, bytes | None]
"""A table, a key, and the value that belongs there; None for a row that must go."""

HELPERS = (tables.RUNS, tables.DEAD)
"""Tables that may be emptied at any time."""

_DISORDER = re.compile(rf"main/({'|'.join((*TABLES, *HELPERS))}) DB: leaf keys out of order ")
"""What LMDB's walker says of a key that stands where it does not belong."""

_FRAMES_A_BATCH = 64


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild looked at and what it had to change."""

    events: int
    rows: int
    changed_rows: int
    objects: int
    index_entries: int


def rebuild(vault: Vault, *, dry_run: bool = False, progress: Progress | None = None) -> Rebuilt:
    """Make the projections and the object index what the log and the frames say.

    ``Damaged`` if the structure of the database is, ``Busy`` beside a collection; then nothing is
    changed.  A dry run beside one may count what that is moving.
    """
    with nullcontext() if dry_run else pins.sole(vault.path, "gc"):
        return rebuilt(vault, dry_run=dry_run, progress=progress)


def rebuilt(vault: Vault, *, dry_run: bool = False, progress: Progress | None = None) -> Rebuilt:
    """``rebuild`` for one who keeps collections away himself.

    What is read of a frame and what is read of the index are not of one moment, and a collection
    appends no event by which it would be noticed: it may have dropped the frame in between.
    """
    if not dry_run:
        _empty_spoilt_helpers(vault)
    index, objects = index_differences(vault, progress or silent)
    while True:
        changes, replayed = differences(vault, progress or silent)
        if dry_run or _replace(vault, changes, index, replayed):
            break
    rows = sum(map(len, replayed.rows.values()))
    return Rebuilt(replayed.seq, rows, len(changes), objects, len(index))


def spoilt_rows(vault: Vault, table: str) -> list[bytes]:
    """The keys of damaged rows of a table."""
    with vault.read() as reader:
        return [key for key, value in reader.suspicious(table) if value is None]


def dead_slots(reader: Reader, number: int) -> int:
    """Places of a frame that are not in the index on purpose; 0 if what says so is damaged."""
    try:
        return reader.dead_slots(number)
    except Damaged:
        return 0


def _empty_spoilt_helpers(vault: Vault) -> None:
    for table in HELPERS:
        if spoilt_rows(vault, table):
            _check_structure(vault)
            with vault.store.write() as writer:
                writer.clear(table)


def _replace(
    vault: Vault, changes: Sequence[Change], index: Sequence[Change], replayed: ReplayedTables
) -> bool:
    """Make the changes unless the log has grown meanwhile: then the rows may be newer."""
    if not changes and not index:
        return True
    _check_structure(vault)
    with vault.store.write() as writer:
        if writer.last().seq != replayed.seq:
            return False
        writer.delete(tables.META, marksfile.ROW)
        for table in {table for table, _, _ in changes}:
            writer.clear(table)
            for key, value in sorted(replayed.rows[table].items()):
                writer.put(table, key, value)
        for table, key, place in index:
            if place is None:
                writer.delete(table, key)
            else:
                writer.put(table, key, place)
    return True


def only_disorder(structure: Sequence[str]) -> bool:
    """Whether all that is wrong with the pages is the order of keys in tables that follow from the
    log: LMDB can read those and drop them.
    """
    return all(_DISORDER.match(line) for line in structure)


def _check_structure(vault: Vault) -> None:
    """Writing to a database whose pages are damaged could make it worse."""
    if not only_disorder(vault.store.structure()):
        raise Damaged(
            "the pages of the database are damaged; nothing was changed. Copy the vault directory "
            "before anything else.",
            kind="structure-damaged",
        )


def differences(vault: Vault, progress: Progress = silent) -> tuple[list[Change], ReplayedTables]:
    """Rows that are not what the log yields.  Another process may append meanwhile."""
    replayed = ReplayedTables()
    while True:
        replayed.follow(vault, progress)
        with vault.read() as reader:
            if reader.last().seq == replayed.seq:
                return list(_row_differences(reader, replayed)), replayed


def _row_differences(reader: Reader, replayed: ReplayedTables) -> Iterator[Change]:
    for table, rows in replayed.rows.items():
        stored = dict(reader.suspicious(table))
        for key in sorted(stored.keys() | rows.keys()):
            if key not in stored or key not in rows or stored[key] != rows[key]:
                yield table, key, rows.get(key)


def index_differences(vault: Vault, progress: Progress = silent) -> tuple[list[Change], int]:
    """Index entries that are missing or wrong, and how many objects the frames hold.

    An object that lies in two frames may be indexed in either; the first one is taken if its entry
    names neither.  An entry whose place holds something else, or nothing, goes.
    """
    changes: dict[bytes, Change] = {}
    wrong: list[bytes] = []
    objects = 0
    for part in entries.parts(vault):
        for number, ids in _frame_ids(vault, part.start, part.stop):
            pointing = part.take(number)
            if ids is None:
                continue  # what pointed there is lost, and stays so until somebody repairs it
            objects += len(ids)
            wrong += [e for e in pointing if not _has(ids, e)]
            _index_frame(vault, number, ids, changes)
            progress(number, part.stop)
        wrong += chain.from_iterable(part.entries.values())
    for entry in wrong:
        oid = entries.id_of(entry)
        if oid not in changes and entries.stands(vault, entry) and not _is_there(vault, entry):
            changes[oid] = (tables.INDEX, oid, None)
    return list(changes.values()), objects


def _index_frame(
    vault: Vault, number: int, ids: Sequence[bytes], changes: dict[bytes, Change]
) -> None:
    """What the index lacks of one frame."""
    with vault.read() as reader:
        places = reader.locate(ids)
        dead = dead_slots(reader, number)
    for slot, (oid, place) in enumerate(zip(ids, places, strict=True)):
        if place == tables.location(number, slot):
            changes.pop(oid, None)
        elif dead >> slot & 1:
            continue  # a collection took it out of the index
        elif oid not in changes and (place is None or not entries.held(vault, [(place, oid)])):
            where = tables.pack_location(tables.location(number, slot))
            changes[oid] = (tables.INDEX, oid, where)


def _is_there(vault: Vault, entry: bytes) -> bool:
    """Whether an entry is right after all, or its frame cannot be read: stored meanwhile."""
    with vault.read() as reader:
        data = reader.frame(entries.frame_of(entry))
    ids = [] if data is None else _ids(data)
    return ids is None or _has(ids, entry)


def _has(ids: Sequence[bytes], entry: bytes) -> bool:
    slot = entries.slot_of(entry)
    return slot < len(ids) and ids[slot] == entries.id_of(entry)


def _frame_ids(vault: Vault, start: int, stop: int) -> Iterator[tuple[int, list[bytes] | None]]:
    """The ids of the objects of every frame, as their bytes say; None for a damaged one."""
    while start < stop:
        with vault.read() as reader:
            batch = list(islice(reader.frames(start), _FRAMES_A_BATCH))
        for number, data in batch:
            if number < stop:
                yield number, _ids(data)
        if not batch:
            return
        start = batch[-1][0] + 1


def _ids(data: bytes) -> list[bytes] | None:
    """The ids of the objects in a frame; None if it is damaged: verify tells what that touches."""
    try:
        return [object_id(content) for content in frames.decode(data)]
    except Damaged:
        return None
