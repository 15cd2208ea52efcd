"""One commit: the one place where the model's values meet the store's bytes.

    Vault ── transaction() ──> Transaction: rows of events + frames of objects
                                   |  commit, all or nothing
                                   ├─ store: frames, index, one log record
                                   └─ model.state: the same record folded into the projections
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blockvault.model import events, state
from blockvault.model.rows import pack_rows, to_row
from blockvault.store import tables
from blockvault.store.frames import Frame
from blockvault.store.types import Writer


class Transaction:
    """What one commit will append: rows of events in order, and the objects they point at.

    ``next_seq`` is the sequence number that the next added row will get; it is certain, since the
    store lets only one writer in.  ``number`` is the commit's own, and 0 afterwards if nothing was
    changed.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.number = writer.txn_id
        seq, last_time, _ = writer.last()
        self.first_seq = seq + 1
        self.time_us = max(events.now_us(), last_time)
        self._rows: list[tuple[Any, ...]] = []

    @property
    def next_seq(self) -> int:
        return self.first_seq + len(self._rows)

    def add(self, event: events.Event) -> int:
        """Append one event, timed now; return its sequence number."""
        # A row's time counts from the record's, and never goes back within it.
        self._rows.append(to_row(event, self._rows[-1][1] if self._rows else 0))
        return self.next_seq - 1

    def add_rows(self, rows: Sequence[tuple[Any, ...]], first_time_us: int) -> None:
        """Append rows in wire form, timed from ``first_time_us``; before any ``add``.

        Where others committed since, the record begins later, but no event moves into the future.
        """
        _, last_time, _ = self.writer.last()
        self.time_us = max(first_time_us, last_time)
        late = self.time_us - first_time_us
        self._rows.extend(
            [(row[0], max(0, row[1] - late), *row[2:]) for row in rows] if late else rows
        )

    def add_frames(self, frames: Sequence[Frame]) -> None:
        self.writer.add_frames(frames)

    def add_runs(self, runs: Mapping[bytes, bytes]) -> None:
        """Remember for leaf ids the hash of all their blocks as one run of bytes."""
        for leaf, digest in sorted(runs.items()):
            self.writer.put(tables.RUNS, leaf, digest)

    def finish(self) -> None:
        if not self._rows:
            return
        payload = pack_rows(self._rows)
        first = self.writer.append(payload, len(self._rows), self.time_us)
        state.apply_record(self.writer, first, self.time_us, self._rows)
