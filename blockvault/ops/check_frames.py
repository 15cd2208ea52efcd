"""The long part of verify: every frame decoded, every object hashed and held against the index.

A frame does not name its objects, so one that fails is a *suspect* by place; a last scan of the
index tells whose place that was.  Objects that the index has elsewhere, and those that a collection
took out of it, are no suspects.  Frames that are stored meanwhile are left to the next time.

The scan may be limited to a random part of the frames and to a number of bytes a second, and it may
go on where an earlier one was interrupted: a file in the vault says how far that one came.
"""

from __future__ import annotations

import os
import random
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from blockvault.errors import Damaged
from blockvault.ids import object_id, short
from blockvault.ops import Progress, rebuild
from blockvault.ops.report import Problem, Report
from blockvault.store import frames, tables

if TYPE_CHECKING:
    from blockvault.vault import Vault

STATE = "verify.at"
_FRAMES_A_BATCH = 64
_ENTRIES_A_PAGE = 10_000
_NOTE_EVERY = 16


class Scan(NamedTuple):
    """How to go through the frames: a share of them, bytes a second (0: as fast as can be)."""

    sample: float = 1.0
    rate: int = 0
    resume: bool = False


class FrameCheck:
    """One pass over the frames."""

    def __init__(self, vault: Vault, report: Report, scan: Scan) -> None:
        self.vault = vault
        self.report = report
        self.scan = scan
        self._choice = random.Random()
        self._first = self._noted() if scan.resume else 0
        self._last = 0
        self._chosen: set[int] | None = set() if scan.sample < 1 else None
        self._seen = array("Q")
        self._matched = 0
        self._suspects: set[int] = set()
        self._broken: dict[int, str] = {}

    def check(self, progress: Progress) -> None:
        start, done, batches = self._first, 0, 0
        total = (self.vault.path / "data.mdb").stat().st_size
        began = time.monotonic()
        with ThreadPoolExecutor(2, "decode") as pool:
            while batch := self._fetch(start):
                start = batch[-1][0] + 1
                self._seen.extend(number for number, _ in batch)
                some = [pair for pair in batch if self._takes(pair[0])]
                decoded = pool.map(_decoded, [data for _, data in some])
                for (number, data), objects in zip(some, decoded, strict=True):
                    self._frame(number, objects)
                    done += len(data)
                    progress(min(done, total), total)
                self._pace(began, done)
                batches += 1
                if batches % _NOTE_EVERY == 0 and self.scan.sample >= 1:
                    self._note(start)
        self._last = start
        self._name_suspects()
        (self.vault.path / STATE).unlink(missing_ok=True)

    def _takes(self, number: int) -> bool:
        if self._chosen is None:
            return True
        if self._choice.random() >= self.scan.sample:
            return False
        self._chosen.add(number)
        return True

    def _pace(self, began: float, done: int) -> None:
        if self.scan.rate:
            time.sleep(max(0.0, done / self.scan.rate - (time.monotonic() - began)))

    def _noted(self) -> int:
        try:
            return int((self.vault.path / STATE).read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _note(self, start: int) -> None:
        """Say how far this came; problems found so far stop that, for they must be told again."""
        if self._suspects or self._broken:
            return
        path = self.vault.path / STATE
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(str(start))
        fresh.replace(path)

    def _fetch(self, start: int) -> list[tuple[int, bytes]]:
        with self.vault.read() as reader:
            return list(islice(reader.frames(start), _FRAMES_A_BATCH))

    def _frame(self, number: int, objects: list[bytes] | str) -> None:
        if isinstance(objects, str):
            self._broken[number] = objects
            return
        ids = [object_id(data) for data in objects]
        self.report.objects += len(ids)
        self.report.bytes += sum(map(len, objects))
        with self.vault.read() as reader:
            places = reader.locate(ids)
            dead = rebuild.dead_slots(reader, number)
        for slot, place in enumerate(places):
            if place == tables.location(number, slot):
                self._matched += 1
            elif place is None and not dead >> slot & 1:
                self._suspects.add(tables.location(number, slot))

    def _name_suspects(self) -> None:
        """Blame the index entries that point at something that is not what they say."""
        named = 0
        for oid, place in self._entries():
            number, _ = tables.split_location(place)
            if not self._first <= number < self._last:
                continue
            if self._chosen is not None and number not in self._chosen and self._exists(number):
                continue
            if not self._exists(number):
                message = f"object {short(oid)} is missing: frame {number}, which held it, is gone"
                self.report.problems.append(Problem("object-missing", message, oid))
            elif number in self._broken:
                self._blame(oid, f"in frame {number}: {self._broken[number]}")
            elif place in self._suspects:
                self._blame(oid, f"in frame {number}: its bytes are not what was stored")
            else:
                named += 1
        if named != self._matched:
            self.report.problems.append(
                Problem(
                    "index-differs",
                    f"{abs(named - self._matched)} entries of the object index point at no such "
                    "object; 'blockvault rebuild' mends that",
                )
            )

    def _exists(self, number: int) -> bool:
        at = bisect_left(self._seen, number)
        return at < len(self._seen) and self._seen[at] == number

    def _blame(self, oid: bytes, why: str) -> None:
        message = f"object {short(oid)} {why}"
        self.report.problems.append(Problem("object-damaged", message, oid))

    def _entries(self) -> Iterator[tuple[bytes, int]]:
        """All of the index, read a page at a time."""
        start = b""
        while True:
            with self.vault.read() as reader:
                page = list(islice(reader.scan(tables.INDEX, start), _ENTRIES_A_PAGE))
            for oid, value in page:
                yield oid, int.from_bytes(value)
            if not page:
                return
            start = page[-1][0] + b"\0"


def _decoded(data: bytes) -> list[bytes] | str:
    """The objects of a frame, or what is wrong with it."""
    try:
        return list(frames.decode(data))
    except Damaged as error:
        return error.message
