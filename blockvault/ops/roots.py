"""What the tables name of trees: every snapshot, and every waypoint of a branch.

Read page by page, while others write: a long read would keep the pages that they free.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from blockvault.model import projections
from blockvault.model.projected import WaypointRow

if TYPE_CHECKING:
    from blockvault.vault import Vault

_ROWS_A_READ = 500


def snapshot_ids(vault: Vault) -> Iterator[bytes]:
    """The ids of all recorded snapshots, in short transactions."""
    start = b""
    while True:
        with vault.read() as reader:
            page = [oid for oid, _ in islice(reader.scan("snapshots", start), _ROWS_A_READ)]
        yield from page
        if not page:
            return
        start = page[-1] + b"\0"


def branch_waypoints(vault: Vault, branch: int) -> Iterator[tuple[int, WaypointRow]]:
    """All waypoints of a branch, oldest first, in short transactions."""
    start = 0
    while True:
        with vault.read() as reader:
            rows = projections.waypoints(reader, branch, start=start, reverse=False)
            page = list(islice(rows, _ROWS_A_READ))
        yield from page
        if not page:
            return
        start = page[-1][0] + 1
