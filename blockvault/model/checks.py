"""Checks of single values, shared by everything that is decoded or built.

Each returns its argument when that is sound and raises ``BadRequest`` when it is not; a decoder
turns that into ``Damaged``.  Types are compared exactly: True is no number.  ``as_text`` makes
sound what need not be exact.
"""

from __future__ import annotations

import reprlib
from typing import Any

from blockvault.errors import BadRequest
from blockvault.ids import ID_SIZE

LIMIT = 1 << 63
"""Above every number in a log or snapshot."""


def check_id(oid: Any) -> bytes:
    """Return ``oid`` if it is 32 bytes."""
    if type(oid) is not bytes or len(oid) != ID_SIZE:
        raise BadRequest(f"{reprlib.repr(oid)} is not an object id")
    return oid


def check_text(text: Any, what: str = "text") -> str:
    """Return ``text`` if it is a string that UTF-8 can hold; ``what`` it is, for people."""
    if type(text) is not str:
        raise BadRequest(f"{reprlib.repr(text)} is not text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{what} holds characters that UTF-8 cannot encode") from None
    return text


def as_text(text: str) -> str:
    """A path or a name from the system, which may be in another encoding, for people to read: what
    is no UTF-8 is replaced.
    """
    return text.encode(errors="surrogateescape").decode(errors="replace")


def check_number(number: Any) -> int:
    """Return ``number`` if it is a sequence number, time or byte count: 0 to ``LIMIT`` - 1."""
    if type(number) is not int or not 0 <= number < LIMIT:
        raise BadRequest(f"{reprlib.repr(number)} is not a number from 0 to 2**63 - 1")
    return number


def check_vault_id(value: Any) -> bytes:
    """Return ``value`` if it is 16 bytes."""
    if type(value) is not bytes or len(value) != 16:
        raise BadRequest(f"{reprlib.repr(value)} is not a vault id")
    return value


def check_ids(value: Any) -> bytes:
    """Return ``value`` if it is one or more concatenated ids."""
    if type(value) is not bytes or not value or len(value) % ID_SIZE:
        raise BadRequest(f"{reprlib.repr(value)} is not a sequence of block ids")
    return value


def check_branch(value: Any) -> int:
    """Return ``value`` if it can be the id of a branch: the number of an event."""
    if check_number(value) == 0:
        raise BadRequest("no branch has the id 0")
    return int(value)


def check_optional_id(value: Any) -> bytes | None:
    """Return ``value`` if it is an id or None."""
    return None if value is None else check_id(value)
