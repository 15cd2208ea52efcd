"""gc: find what nothing needs any more, and give its space back, beside writers and readers.

    mark      census of all frames, a bit for each object that can be reached
    condemn   the dead places of each frame go to the table ``dead``, and a new epoch begins:
              from now on a writer that needs a dead object stores it anew
    wait      until every guard of earlier epochs is gone, then mark what those wrote meanwhile
    sweep     in small transactions: dead objects leave the index, frames with little left alive
              are moved together, empty ones dropped; then records that a prune forgot become gaps

Nothing is removed before all four have been told of it, and nothing depends on a clock.  A run that
is killed leaves condemned places behind, which are marks on paper, and what it has marked
(``marksfile``): the next run goes on from there, and what was stored since then is left to a second
one behind it.  Each transaction is short, and writers get their turn after each (``turns``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blockvault import pins
from blockvault.errors import Busy, IOFailed
from blockvault.model import events
from blockvault.ops import Progress, base, bisect, images, marksfile, recompress, silent
from blockvault.ops.mark import Marker
from blockvault.ops.marks import Counted, Marks
from blockvault.ops.prune import Plan as PrunePlan
from blockvault.ops.sweep import Sweeper
from blockvault.ops.turns import Turns
from blockvault.store import compaction, scratch, tables

if TYPE_CHECKING:
    from pathlib import Path

    from blockvault.vault import Vault

WAIT = 60.0
"""Seconds that a collection waits for those who began before it; the rest is for the next run."""

LEAVE = 0.03
"""Share of the dead bytes that may stay in frames that are mostly alive."""

_LEAVE_ANYWAY = 0.001
_ROWS_A_COMMIT = 2000
_RECORDS_A_COMMIT = 500
_POLL = 0.02


@dataclass(frozen=True, slots=True)
class Plan:
    """What a collection would find; sizes as stored, in bytes."""

    objects: int
    dead_objects: int
    stored: int
    dead: int
    drop: int
    rewrite: int
    leave: int


@dataclass(slots=True)
class Collected:
    """What a collection did; ``complete`` is False if somebody who began earlier is not done.

    ``foreign`` are directories beside the data that other users made, and can remove.
    """

    plan: Plan
    complete: bool = False
    objects: int = 0
    frames_dropped: int = 0
    frames_rewritten: int = 0
    bytes_freed: int = 0
    records: int = 0
    given_back: int = 0
    unreadable: list[int] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def followed_by(self, other: Collected) -> Collected:
        """Both as one; what the second leaves is what is left."""
        first, second = self.plan, other.plan
        return Collected(
            Plan(
                first.objects,
                first.dead_objects + second.dead_objects,
                first.stored,
                first.dead + second.dead,
                first.drop + second.drop,
                first.rewrite + second.rewrite,
                second.leave,
            ),
            other.complete,
            self.objects + other.objects,
            self.frames_dropped + other.frames_dropped,
            self.frames_rewritten + other.frames_rewritten,
            self.bytes_freed + other.bytes_freed,
            self.records + other.records,
            self.given_back + other.given_back,
            sorted({*self.unreadable, *other.unreadable}),
        )


def plan(vault: Vault, *, progress: Progress = silent) -> Plan:
    """Mark everything and count; nothing is changed."""
    with vault.guard():
        marks = Marks(vault)
        Marker(vault, marks, progress=progress).run()
    return _Choice(marks).plan


def freed_by(vault: Vault, what: PrunePlan, *, progress: Progress = silent) -> tuple[int, int]:
    """Bytes that a planned prune makes collectable, and those that are already."""
    with vault.guard():
        marks = Marks(vault)
        if not what.empty:
            Marker(vault, marks, plan=what, progress=progress).run()
        after = sum(frame.dead_bytes for frame in marks.frames())
        Marker(vault, marks, progress=progress).run()
        now = sum(frame.dead_bytes for frame in marks.frames())
    return 0 if what.empty else after - now, now


def collect(vault: Vault, *, wait: float = WAIT, progress: Progress | None = None) -> Collected:
    """Collect what can be collected; ``Busy`` if another collection is at it."""
    foreign = [str(path) for path in _clean(vault.path)]
    with pins.sole(vault.path, "gc"):
        collection = Collection(vault, progress or silent)
        done = collection.run(wait)
        if done.complete and collection.behind:
            done = done.followed_by(Collection(vault, progress or silent).run(wait))
        done.foreign = foreign
        return done


def _clean(path: Path) -> list[Path]:
    """Remove what killed processes left beside the data; return what other users have there."""
    return [
        *bisect.clean(path),
        *scratch.clean(path, images.DECODED),
        *scratch.clean(path, compaction.BUILDING),
    ]


class _Choice:
    """Which frames go, which are worth moving, and which keep their dead places."""

    def __init__(self, marks: Marks) -> None:
        dead = [frame for frame in marks.frames() if frame.dead]
        self.drop = [frame for frame in dead if not frame.marked]
        partly = [frame for frame in dead if frame.marked]
        partly.sort(key=lambda frame: frame.marked.bit_count() / frame.objects)
        total = sum(frame.dead_bytes for frame in dead)
        may_stay = max(total * LEAVE, marks.stored * _LEAVE_ANYWAY)
        stays = sum(frame.dead_bytes for frame in partly)
        cut = 0
        while cut < len(partly) and stays > may_stay:
            stays -= partly[cut].dead_bytes
            cut += 1
        self.rewrite, self.leave = partly[:cut], partly[cut:]
        self.plan = Plan(
            marks.objects,
            marks.objects - marks.marked,
            marks.stored,
            total,
            len(self.drop),
            len(self.rewrite),
            len(self.leave),
        )


class Collection:
    """One run; ``run`` calls the phases in order, tests call them one by one."""

    def __init__(self, vault: Vault, progress: Progress = silent) -> None:
        self.vault = vault
        self.turns = Turns(vault)
        self.progress = progress

    def run(self, wait: float) -> Collected:
        self.mark()
        self.condemn()
        if not self.drain(wait):
            return Collected(_Choice(self.marks).plan)
        self.settle()
        for _ in self.sweep():
            pass
        done = self.done
        done.records = self.forget_records()
        recompress.note_age(self.vault, events.now_us())
        with suppress(IOFailed, Busy):
            done.given_back = self.vault.give_back()
        return done

    def mark(self) -> None:
        """Phase one: what is reachable, at least up to ``seq``."""
        self._file, found = marksfile.begin(self.vault)
        self.marks, self.behind = found.marks, found.behind
        self.marker = Marker(
            self.vault, self.marks, since=found.seq, note=self._file.note, progress=self.progress
        )
        self.seq = self.marker.run()
        self._file.write(self.seq + 1)

    def condemn(self) -> None:
        """Phase two: let nobody begin to need what is dead."""
        with self.vault.read() as reader:
            before = reader.condemning
        changed = list(self._changed(before))
        self.fresh = {number for number, _ in changed}
        for at in range(0, len(changed), _ROWS_A_COMMIT):
            with self.turns.write() as writer:
                writer.condemn(True)
                for number, slots in changed[at : at + _ROWS_A_COMMIT]:
                    writer.set_dead(number, slots)
        with self.vault.store.write() as writer:
            self.ended = pins.next_epoch(writer)

    def _changed(self, before: bool) -> Iterator[tuple[int, int]]:
        """Frames whose dead places are not what the table says, or were never swept."""
        with self.vault.read() as reader:
            table = reader.all_dead_slots()
        for frame in self.marks.frames():
            known = table.get(frame.number, 0)
            if known != frame.dead or (before and known):
                yield frame.number, frame.dead

    def drain(self, wait: float) -> bool:
        """Phase three: wait for those who may have seen the dead alive."""
        deadline = time.monotonic() + wait
        while not pins.drained(self.vault.path, self.ended):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
        return True

    def settle(self) -> None:
        """What they wrote, and what they pinned, lives."""
        self.seq = self.marker.catch_up(self.seq)
        self.marker.pinned()

    def sweep(self) -> Iterator[int]:
        """Phase four, a transaction at a time: remove, move together, and say at the end that
        nothing is condemned any more; ``done`` counts.
        """
        choice = _Choice(self.marks)
        done = self.done = Collected(choice.plan)
        sweeper = Sweeper(self.vault, self.turns, self.marks, done)
        doomed = sum(frame.length for frame in [*choice.drop, *choice.rewrite]) or 1
        seen = 0
        leave, swept = self._left(choice.leave)
        look = swept if self.marks.unfound else []
        for step in sweeper.steps(choice.drop, choice.rewrite, leave, look):
            seen += step
            self.progress(min(seen, doomed), doomed)
            yield step
        with self.vault.store.write() as writer:
            writer.condemn(False)
            writer.delete(tables.META, marksfile.ROW)
        self._file.remove()
        done.complete = True

    def _left(self, frames: Sequence[Counted]) -> tuple[list[Counted], list[Counted]]:
        """Frames that stay with dead objects in the index, or came to life again; and those of
        which an earlier collection has told the index and the table.
        """
        fresh = [frame for frame in frames if frame.number in self.fresh]
        swept = [frame for frame in frames if frame.number not in self.fresh]
        others = self.fresh - {frame.number for frame in fresh}
        alive = (self.marks.frame(number) for number in others)
        return fresh + [frame for frame in alive if frame is not None and not frame.dead], swept

    def forget_records(self) -> int:
        """Turn records that the newest prune forgot into gaps; return how many."""
        found = base.find(self.vault)
        forgotten = [] if found is None else list(reversed(found.forgotten))
        count = 0
        while forgotten:
            with self.turns.write() as writer:
                room = _RECORDS_A_COMMIT
                while forgotten and room > 1:
                    took = writer.forget_records(*forgotten[-1], room)
                    if took < room:
                        forgotten.pop()
                    count += max(0, took - 1)
                    room -= max(1, took)
        return count
