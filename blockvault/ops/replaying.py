"""The log, replayed into tables in memory: what the projections ought to be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from blockvault.errors import Damaged
from blockvault.model import state
from blockvault.model.projections import TABLES, TRAIL
from blockvault.model.rows import unpack_rows
from blockvault.ops import Progress, base
from blockvault.ops.base import Base

if TYPE_CHECKING:
    from blockvault.vault import Vault


class ReplayedTables:
    """Projection tables in memory, for a fold that is not (yet) to be stored."""

    def __init__(self) -> None:
        self.seq = 0
        self.rows: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLES}

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.rows[table].get(key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.rows[table][key] = value

    def delete(self, table: str, key: bytes) -> None:
        self.rows[table].pop(key, None)

    def scan(
        self, table: str, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        rows = self.rows[table]
        keys = [key for key in rows if start <= key and (stop is None or key < stop)]
        for key in sorted(keys, reverse=reverse):
            yield key, rows[key]

    def follow(self, vault: Vault, progress: Progress) -> None:
        """Fold the records beyond ``seq``, each read in a transaction of its own."""
        with vault.read() as reader:
            last = reader.last().seq
        if not self.seq:
            self._begin(vault, base.find(vault))
        for record in base.records(vault, self.seq + 1, last + 1):
            if record.pruned:
                # A prune came in between, or the row that names the base is lost.
                self._begin(vault, base.after(vault, record.first_seq))
                return self.follow(vault, progress)
            rows = unpack_rows(record.payload)
            state.apply_record(self, record.first_seq, record.time_us, rows)
            self.seq = record.last_seq
            progress(self.seq, last)

    def _begin(self, vault: Vault, found: Base | None) -> None:
        """Take the tables that the newest prune left, and the trail of the records it kept."""
        if found is None:
            return
        self.rows = {name: {} for name in TABLES}
        state.apply_record(self, found.seq, found.record.time_us, [found.row])
        for first, end, _ in found.kept:
            for record in base.records(vault, first, end):
                if record.pruned:
                    raise Damaged(
                        f"the records from event {record.first_seq} on are gone, but no prune "
                        "forgot them",
                        kind="broken-chain",
                    )
                rows = unpack_rows(record.payload)
                for key, value in state.trail_rows(self, record.first_seq, record.time_us, rows):
                    self.put(TRAIL, key, value)
        self.seq = found.seq
