"""Rows: events as they stand in the log.

A *record* of the log is a list of rows, ``[code, dt_us, field...]``, one for each event, numbered
on from the record's first sequence number.  ``dt_us`` is the time since the record's, so that a row
is short; it never decreases within a record.

``unpack_rows`` checks what comes from the disk once; the fold then reads the rows as they are.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

from blockvault.encoding import pack, unpack
from blockvault.errors import BadRequest, Damaged, Unsupported
from blockvault.ids import ID_SIZE
from blockvault.model import events
from blockvault.model.checks import LIMIT, check_number
from blockvault.model.names import check_volume_name
from blockvault.model.snapshot import volumes_from

Row = tuple[Any, ...]


def to_row(event: events.Event, dt_us: int) -> Row:
    """The row of an event that happened ``dt_us`` after its record's time."""
    return (event.CODE, dt_us, *(getattr(event, name) for name in event.FIELDS))


def from_row(row: Sequence[Any]) -> tuple[int, events.Event]:
    """``(dt_us, event)`` of a row; ``Damaged`` if its fields are wrong."""
    code, dt_us, *values = row
    kind = events.EVENTS.get(code)
    if kind is None:
        raise _unknown(code)
    try:
        if code in events.WAYPOINT_CODES:
            at = kind.FIELDS.index("volumes")
            values[at] = volumes_from(values[at])
        return check_number(dt_us), kind(**dict(zip(kind.FIELDS, values, strict=True)))
    except (TypeError, ValueError, IndexError, BadRequest) as error:
        raise Damaged(f"event {kind.__name__} is damaged: {error}", kind="bad-event") from None


def pack_rows(rows: Sequence[Row]) -> bytes:
    """The payload of a record."""
    return pack(rows)


def unpack_rows(payload: bytes | memoryview) -> list[Row]:
    """The rows of a record, checked: what passes here can be folded without further doubt.

    Rows of data events stay as they are, volumes become ``Volume``s.  ``Damaged`` if the payload is
    not a list of sound rows, ``Unsupported`` if it holds an event of a later version.
    """
    value = unpack(payload, "log record")
    if not isinstance(value, tuple) or not value:
        raise Damaged("log record is not a list of events", kind="bad-event")
    before = 0
    rows = []
    for row in value:
        rows.append(_checked(row))
        if not before <= row[1]:
            raise Damaged("times within a log record run backwards", kind="bad-event")
        before = row[1]
    return rows


def _checked(row: Any) -> Row:
    if not isinstance(row, tuple) or len(row) < 2 or type(row[0]) is not int:
        raise Damaged(f"{reprlib.repr(row)} is not an event", kind="bad-event")
    if row[0] == events.WROTE and len(row) == 7:
        # The commonest row by far: the same checks as in Wrote, without building one.
        _, dt_us, branch, volume, offset, length, ids = row
        if (
            type(dt_us) is type(branch) is type(offset) is type(length) is int
            and type(volume) is str
            and type(ids) is bytes
            and min(dt_us, offset, length, branch - 1) >= 0
            and max(dt_us, offset, length, branch) < LIMIT
            and ids
            and not len(ids) % ID_SIZE
            and _known_volume(volume)
        ):
            return row
    if row[0] == events.BARRIER and len(row) == 3:  # the next commonest
        _, dt_us, branch = row
        if type(dt_us) is type(branch) is int and 0 <= dt_us < LIMIT and 0 < branch < LIMIT:
            return events.BARRIER, dt_us, branch
    dt_us, event = from_row(row)
    return to_row(event, dt_us)


_known: set[str] = set()


def _known_volume(name: str) -> bool:
    """Whether a name passed the check, remembering the few that a machine has."""
    if name in _known:
        return True
    try:
        check_volume_name(name)
    except BadRequest:
        return False
    if len(_known) < 1024:
        _known.add(name)
    return True


def _unknown(code: Any) -> Unsupported:
    return Unsupported(
        f"the log holds an event of code {reprlib.repr(code)}; a later program wrote it"
    )
