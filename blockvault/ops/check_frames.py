"""The long part of verify: every entry of the index, held against the object that it points at.

The index is sorted out by frame; then one frame after another is decoded, and each object that the
index has there is hashed.  Both are read a part at a time, in short transactions, so memory does
not grow with the vault and nobody waits.  A collection may move objects meanwhile: an entry that
does not fit is looked up again before it is called wrong.  Frames that are stored meanwhile are
left to the next time.  Objects that the index does not have, copies and dead ones, are nobody's.

The scan may be limited to a random part of the frames and to a number of bytes a second, and it may
go on where an earlier one was interrupted: a file in the vault says how far that one came.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from blockvault.errors import Damaged
from blockvault.ids import object_id, short
from blockvault.ops import Progress, entries
from blockvault.ops.entries import Part
from blockvault.ops.report import Problem, Report, hidden
from blockvault.store import frames, tables
from blockvault.store.frames import Objects

if TYPE_CHECKING:
    from blockvault.vault import Vault

STATE = "verify.at"
_FRAMES_A_BATCH = 16
_BATCHES_AHEAD = 4
_NOTE_EVERY = 64


class Scan(NamedTuple):
    """How to go through the frames: a share of them, bytes a second (0: as fast as can be)."""

    sample: float = 1.0
    rate: int = 0
    resume: bool = False


class _Batch(NamedTuple):
    """Some frames that are being decoded, up to number ``stop``; ``size`` is their bytes, and
    ``entries`` are those that point at each, as place ‖ id.
    """

    stop: int
    size: int
    entries: list[list[bytes]]
    decoded: Future[list[Objects | str]]


class FrameCheck:
    """One pass over the index and the frames."""

    def __init__(self, vault: Vault, report: Report, scan: Scan) -> None:
        self.vault = vault
        self.report = report
        self.scan = scan
        self._choice = random.Random()
        self._lying = 0
        self._done = self._batches = 0

    def check(self, progress: Progress) -> None:
        self._progress, self._began = progress, time.monotonic()
        self._total = (self.vault.path / "data.mdb").stat().st_size
        first = self._noted() if self.scan.resume else 0
        with ThreadPoolExecutor(2, "verify") as pool:
            for part in entries.parts(self.vault, first):
                self._lying += part.hidden
                self._part(pool, part)
                self._gone(chain.from_iterable(part.entries.values()))
        if self._lying:
            message = (
                f"{self._lying} entries of the object index point at no such object or are not "
                "found; 'blockvault rebuild' mends that"
            )
            self.report.problems.append(Problem("index-differs", message))
        (self.vault.path / STATE).unlink(missing_ok=True)

    def _part(self, pool: Executor, part: Part) -> None:
        """Frames are decoded by threads, a few batches ahead of their objects being hashed here."""
        waiting: deque[_Batch] = deque()
        for numbered in self._fetched(part.start, part.stop):
            chosen: list[bytes] = []
            theirs: list[list[bytes]] = []
            for number, data in numbered:
                pointing = part.take(number)
                if self._takes():
                    chosen.append(data)
                    theirs.append(pointing)
            size, decoded = sum(map(len, chosen)), pool.submit(_decoded, chosen)
            waiting.append(_Batch(numbered[-1][0] + 1, size, theirs, decoded))
            if len(waiting) > _BATCHES_AHEAD:
                self._take(waiting.popleft())
        for batch in waiting:
            self._take(batch)

    def _fetched(self, start: int, stop: int) -> Iterator[list[tuple[int, bytes]]]:
        while start < stop:
            with self.vault.read() as reader:
                numbered = reader.frames(start)
                batch = [pair for pair in islice(numbered, _FRAMES_A_BATCH) if pair[0] < stop]
                self.report.problems += [
                    hidden(f"frame {number}")
                    for number, _ in batch
                    if not reader.stands(tables.FRAMES, number)
                ]
            if not batch:
                return
            yield batch
            start = batch[-1][0] + 1

    def _takes(self) -> bool:
        return self.scan.sample >= 1 or self._choice.random() < self.scan.sample

    def _take(self, batch: _Batch) -> None:
        """Check a batch, and say how far the scan came."""
        for objects, pointing in zip(batch.decoded.result(), batch.entries, strict=True):
            self._frame(objects, pointing)
        self._done += batch.size
        self._progress(min(self._done, self._total), self._total)
        if self.scan.rate:
            time.sleep(max(0.0, self._done / self.scan.rate - (time.monotonic() - self._began)))
        self._batches += 1
        if self._batches % _NOTE_EVERY == 0 and self.scan.sample >= 1:
            self._note(batch.stop)

    def _frame(self, objects: Objects | str, pointing: Sequence[bytes]) -> None:
        """Hash what the index has in one frame; a text says why the frame cannot be decoded."""
        if isinstance(objects, str):
            for entry in pointing:
                self._blame(entry, objects)
            return
        size, count = 0, objects.count
        for entry in pointing:
            slot = entries.slot_of(entry)
            content = objects[slot] if slot < count else b""
            size += len(content)
            if blake3(content).digest() != entries.id_of(entry):
                self._blame(entry, content)
        self.report.objects += len(pointing)
        self.report.bytes += size

    # -- what does not fit -------------------------------------------------------------------------

    def _gone(self, left: Iterable[bytes]) -> None:
        """Entries of frames that were not met."""
        for entry in left:
            number, oid = entries.frame_of(entry), entries.id_of(entry)
            with self.vault.read() as reader:
                there = reader.frame_view(number) is not None
            if not there and entries.stands(self.vault, entry):
                message = f"object {short(oid)} is missing: frame {number}, which held it, is gone"
                self.report.problems.append(Problem("object-missing", message, oid))

    def _blame(self, entry: bytes, why: str | bytes) -> None:
        """An entry does not fit: the reason, or the object that is there instead (empty: none)."""
        if not entries.stands(self.vault, entry):
            return
        if isinstance(why, bytes):
            if not why or self._is_object(object_id(why)):
                self._lying += 1  # a whole object, but another one
                return
            why = "its bytes are not what was stored"
        oid = entries.id_of(entry)
        message = f"object {short(oid)} in frame {entries.frame_of(entry)}: {why}"
        self.report.problems.append(Problem("object-damaged", message, oid))

    def _is_object(self, oid: bytes) -> bool:
        """Whether the vault has, or misses, an object with this id."""
        with self.vault.read() as reader:
            return bool(reader.indexed([oid])) or oid in self.report.lost

    # -- resuming ----------------------------------------------------------------------------------

    def _noted(self) -> int:
        try:
            return int((self.vault.path / STATE).read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _note(self, start: int) -> None:
        """Say how far this came; problems found so far stop that, for they must be told again."""
        if self.report.problems or self._lying:
            return
        path = self.vault.path / STATE
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(str(start))
        fresh.replace(path)


def _decoded(datas: Sequence[bytes]) -> list[Objects | str]:
    """Decode frames, or say why not; runs in a thread."""
    found: list[Objects | str] = []
    for data in datas:
        try:
            found.append(frames.decode(data))
        except Damaged as error:
            found.append(error.message)
    return found
