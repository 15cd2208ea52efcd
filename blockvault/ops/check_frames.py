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

import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from blockvault import files
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
_FRAMES_A_BATCH = 4
_BATCHES_AHEAD = 4
_NOTE_EVERY = 256


class Scan(NamedTuple):
    """How to go through the frames: a share of them, bytes a second (0: as fast as can be)."""

    sample: float = 1.0
    rate: int = 0
    resume: bool = False


class _Seen(NamedTuple):
    """What a thread found in some frames: how much, and the entries that do not fit.

    With each the object that is there instead (empty: none), or a text that says why there is none.
    """

    objects: int
    size: int
    wrong: list[tuple[bytes, bytes | str]]


class _Batch(NamedTuple):
    """Some frames that are being looked at, up to number ``stop``; ``size`` is their bytes."""

    stop: int
    size: int
    seen: Future[_Seen]


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
        self._lying = entries.hidden(self.vault)
        with ThreadPoolExecutor(2, "verify") as pool:
            for part in entries.parts(self.vault, first):
                self._part(pool, part)
                self._gone(chain.from_iterable(part.entries.values()))
        if self._lying:
            message = (
                f"{self._lying} entries of the object index point at no such object or are not "
                "found; 'blockvault rebuild' mends that"
            )
            self.report.problems.append(Problem("index-differs", message))
        if self.scan.sample >= 1:  # how far another one came tells nothing of a random part
            with suppress(OSError):
                (self.vault.path / STATE).unlink(missing_ok=True)

    def _part(self, pool: Executor, part: Part) -> None:
        """Frames are decoded and hashed by threads, a few batches ahead."""
        waiting: deque[_Batch] = deque()
        for numbers, read in self._fetched(part.start, part.stop):
            theirs = {number: part.take(number) for number in numbers}
            seen = pool.submit(_looked_at, list(read.values()), [theirs[each] for each in read])
            size = sum(map(len, read.values()))
            waiting.append(_Batch(numbers[-1] + 1, size, seen))
            if len(waiting) > _BATCHES_AHEAD:
                self._take(waiting.popleft())
        for batch in waiting:
            self._take(batch)

    def _fetched(self, start: int, stop: int) -> Iterator[tuple[list[int], dict[int, bytes]]]:
        """The numbers of a few frames after another, and the bytes of those that are chosen."""
        while start < stop:
            with self.vault.read() as reader:
                numbered = reader.frame_numbers(start, _FRAMES_A_BATCH)
                numbers = [number for number in numbered if number < stop]
                standing = [each for each in numbers if reader.stands(tables.FRAMES, each)]
                chosen = [each for each in standing if self._takes()]
                read = {each: data for each in chosen if (data := reader.frame(each)) is not None}
            if not numbers:
                return
            found = set(standing)
            self.report.problems += [
                hidden(f"frame {each}") for each in numbers if each not in found
            ]
            yield numbers, read
            start = numbers[-1] + 1

    def _takes(self) -> bool:
        return self.scan.sample >= 1 or self._choice.random() < self.scan.sample

    def _take(self, batch: _Batch) -> None:
        """Report on a batch, and say how far the scan came."""
        seen = batch.seen.result()
        self.report.objects += seen.objects
        self.report.bytes += seen.size
        for entry, instead in seen.wrong:
            self._blame(entry, instead)
        self._done += batch.size
        self._progress(min(self._done, self._total), self._total)
        if self.scan.rate:
            time.sleep(max(0.0, self._done / self.scan.rate - (time.monotonic() - self._began)))
        self._batches += 1
        if self._batches % _NOTE_EVERY == 0 and self.scan.sample >= 1:
            self._note(batch.stop)

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
        with suppress(OSError):  # a disk that takes nothing is read all the same
            files.replace(self.vault.path / STATE, str(start).encode())


def _looked_at(datas: Sequence[bytes], theirs: Sequence[Sequence[bytes]]) -> _Seen:
    """Decode frames, and hash what the index has in each; runs in a thread."""
    objects = size = 0
    wrong: list[tuple[bytes, bytes | str]] = []
    for data, pointing in zip(datas, theirs, strict=True):
        try:
            decoded = frames.decode(data)
        except Damaged as error:
            wrong += [(entry, error.message) for entry in pointing]
            continue
        contents = _contents(decoded, pointing)
        for entry, content, digest in zip(
            pointing, contents, map(object_id, contents), strict=True
        ):
            if not entry.endswith(digest):
                wrong.append((entry, bytes(content)))
        objects += len(pointing)
        size += sum(map(len, contents))
    return _Seen(objects, size, wrong)


def _contents(objects: Objects, pointing: Sequence[bytes]) -> list[bytes | memoryview]:
    """The objects that entries point at; nothing where there is none."""
    slots = map(entries.slot_of, pointing)
    if not objects.uniform:
        return [objects[slot] if slot < objects.count else b"" for slot in slots]
    payload, step = memoryview(objects.payload), objects.uniform
    return [payload[slot * step : (slot + 1) * step] for slot in slots]
