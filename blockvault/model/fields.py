"""What each field of an event may hold: what is checked when an event is built or read.

Most fields mean the same in every event; the exceptions are told by the event's name.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from blockvault.errors import BadRequest
from blockvault.model.checks import (
    check_branch,
    check_id,
    check_ids,
    check_number,
    check_optional_id,
    check_text,
    check_vault_id,
)
from blockvault.model.names import check_ref_name, check_volume_name
from blockvault.model.snapshot import check_volumes

BASE_TABLES: Final = ("refs", "branches", "waypoints", "snapshots")
"""The projections that a base holds; the trail follows from the records that are kept."""
VOLUME_ACTIONS: Final = ("add", "remove", "rename", "resize")

Check = Callable[[Any], object]
"""Raises ``BadRequest`` for a value that must not be."""


def checks_of(event: str, names: Sequence[str]) -> tuple[tuple[str, Check], ...]:
    """For each field of an event its name and the check of its values."""
    return tuple((name, _SPECIAL.get((event, name)) or _CHECKS[name]) for name in names)


def _action(value: Any) -> None:
    if value not in VOLUME_ACTIONS:
        raise BadRequest(f"{reprlib.repr(value)} is not one of {', '.join(VOLUME_ACTIONS)}")


def _tuples(value: Any, size: int, what: str) -> tuple[tuple[Any, ...], ...]:
    if not isinstance(value, tuple) or not all(
        isinstance(item, tuple) and len(item) == size for item in value
    ):
        raise BadRequest(f"{reprlib.repr(value)} are no {what}")
    return value


def _rules(value: Any) -> None:
    names = []
    for name, amount in _tuples(value, 2, "rules"):
        names.append(check_text(name))
        for pattern in amount if isinstance(amount, tuple) else ():
            check_text(pattern)
        if not isinstance(amount, tuple):
            check_number(amount)
    if names != sorted(set(names)):
        raise BadRequest("rules are in the order of their names, each once")


def _kept(value: Any) -> None:
    at = 0
    for first, end, chain in _tuples(value, 3, "runs of records"):
        check_id(chain)
        if not at < check_number(first) < check_number(end):
            raise BadRequest("runs of records do not ascend")
        at = first


def _base(value: Any) -> None:
    for table, key, row in _tuples(value, 3, "rows"):
        if table not in BASE_TABLES or type(key) is not bytes or type(row) is not bytes:
            raise BadRequest(f"{reprlib.repr(table)} has no such row")


_CHECKS: Final[dict[str, Check]] = {
    "vault_id": check_vault_id,
    "block_size": check_number,
    "compression": check_text,
    "name": check_ref_name,
    "branch": check_branch,
    "target_branch": check_number,
    "target_seq": check_number,
    "source_seq": check_number,
    "offset": check_number,
    "length": check_number,
    "ids": check_ids,
    "volume": check_volume_name,
    "volumes": check_volumes,
    "action": _action,
    "text": check_text,
    "rules": _rules,
    "kept": _kept,
    "base": _base,
}
_SPECIAL: Final[dict[tuple[str, str], Check]] = {
    ("BranchCreated", "source"): check_number,
    ("BranchCreated", "snapshot"): check_optional_id,
    ("RolledBack", "snapshot"): check_optional_id,
    ("Imported", "source"): check_text,
    ("Imported", "snapshot"): check_id,
    ("Snapshotted", "snapshot"): check_id,
    ("Tagged", "snapshot"): check_id,
    ("Held", "snapshot"): check_id,
    ("Unheld", "snapshot"): check_id,
    ("PolicySet", "branch"): check_number,
}
