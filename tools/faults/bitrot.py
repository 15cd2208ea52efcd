"""Bit rot: small, silent changes of a file, and what became of each.

A ``Damage`` replaces bytes of the sound file, or cuts it short; generators pick where.  ``judge``
then says how it ended.  The rules are strict: a change counts as harmless only if everything reads
as before *and* the page map proves that the changed byte is not in use.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from tools.faults.children import Outcome
from tools.faults.pages import IN_USE, META_SIZE, PageMap, Span


class Damage(NamedTuple):
    """``data`` in place of the file's bytes from ``offset``; ``None`` cuts the file there."""

    offset: int
    data: bytes | None
    what: str

    def apply(self, path: Path) -> None:
        with path.open("r+b") as file:
            if self.data is None:
                file.truncate(self.offset)
            else:
                file.seek(self.offset)
                file.write(self.data)


class Verdict(Enum):
    FOUND = "found"  # an error somewhere, and nothing wrong was returned
    FREE = "free"  # nothing changed, and the byte is proved unused
    EQUAL = "equal"  # nothing changed, for the engine neither: see Seen.same
    STOPPED = "stopped"  # a look without the engine finds it; the engine died of it
    MISLED = "misled"  # checking found it; reading without checking first gave a wrong answer
    SILENT = "silent"  # wrong content, or a byte in use, that checking did not notice
    CRASHED = "crashed"  # checking died, or reading died of what checking had not found


class Seen(NamedTuple):
    """What a check saw: the errors it was told of, and a digest of each part that it could read.

    Parts that cannot be read are left out; a part that is there must be right, errors or not.
    ``same``: the file passes a structural check of its own and holds the same rows as before, so
    that the changed bits mean nothing.
    """

    errors: tuple[str, ...]
    digests: dict[str, str]
    same: bool = False


def flip(sound: bytes, offset: int, bit: int, what: str) -> Damage:
    return Damage(offset, bytes([sound[offset] ^ 1 << bit]), f"{what} bit {bit} at {offset}")


def meta_flips(sound: bytes, page_size: int) -> Iterator[Damage]:
    """Every bit that LMDB uses of its two meta pages: 2,432 of them."""
    for page in (0, 1):
        for offset in range(page * page_size, page * page_size + META_SIZE):
            for bit in range(8):
                yield flip(sound, offset, bit, f"meta {page}")


def flips_in(sound: bytes, spans: Sequence[Span], count: int, rng: random.Random) -> list[Damage]:
    """Random bits of the spans: first a table by lot, then any byte of it like any other."""
    tables: dict[str, list[Span]] = {}
    for span in spans:
        tables.setdefault(span.table, []).append(span)
    chosen = []
    for table in rng.choices(sorted(tables), k=count):
        span = rng.choices(tables[table], [span.stop - span.start for span in tables[table]])[0]
        offset = rng.randrange(span.start, span.stop)
        chosen.append(flip(sound, offset, rng.randrange(8), f"{span.table} {span.kind}"))
    return chosen


def flips_anywhere(
    sound: bytes, pages: PageMap, count: int, rng: random.Random
) -> Iterator[Damage]:
    for _ in range(count):
        offset = rng.randrange(len(sound))
        span = pages.span_at(offset)
        name = f"{span.table} {span.kind}" if span else "unused"
        yield flip(sound, offset, rng.randrange(8), name)


def truncations(sound: bytes, pages: PageMap, count: int, rng: random.Random) -> Iterator[Damage]:
    """At the last bytes, at page borders, and anywhere."""
    for size in (0, 1, len(sound) - 1, len(sound) - pages.page_size, pages.page_size):
        yield Damage(size, None, f"cut to {size} of {len(sound)}")
    for _ in range(count - 5):
        size = rng.randrange(len(sound))
        size -= size % pages.page_size if rng.random() < 0.5 else 0
        yield Damage(size, None, f"cut to {size} of {len(sound)}")


def lost_sectors(sound: bytes, count: int, rng: random.Random) -> Iterator[Damage]:
    """A sector that reads as zeros, or as another sector of the same file."""
    for _ in range(count):
        at, other = (512 * rng.randrange(len(sound) // 512) for _ in range(2))
        data = rng.choice((bytes(512), sound[other : other + 512]))
        if data != sound[at : at + 512]:
            yield Damage(at, data, f"sector at {at} replaced")


def judge(
    outcomes: Sequence[Outcome],
    sound: Seen,
    before: bytes,
    pages: PageMap,
    offline: Callable[[Damage], bool] = lambda damage: False,
) -> Verdict:
    """How one damage ended, given what several checks saw of it; the first is the careful one.

    ``offline`` says whether a structural check without the engine finds it.
    """
    seen = [outcome.value for outcome in outcomes if outcome.returned]
    digests = [item for one in seen for item in one.digests.items()]
    checked = outcomes[0].returned and bool(outcomes[0].value.errors)
    if any(sound.digests.get(part) != digest for part, digest in digests):
        return Verdict.MISLED if checked and len(outcomes) > 1 else Verdict.SILENT
    if any(outcome.error and not outcome.died for outcome in outcomes):
        return Verdict.CRASHED
    if len(seen) < len(outcomes):
        return Verdict.STOPPED if checked or offline(outcomes[0].task) else Verdict.CRASHED
    if any(one.errors for one in seen):
        return Verdict.FOUND
    if dict(digests) != sound.digests:
        return Verdict.SILENT
    if not _in_use(outcomes[0].task, before, pages):
        return Verdict.FREE
    return Verdict.EQUAL if seen[0].same else Verdict.SILENT


def summary(verdicts: Iterable[Verdict]) -> dict[str, int]:
    return {verdict.value: count for verdict, count in Counter(verdicts).items()}


def _in_use(damage: Damage, before: bytes, pages: PageMap) -> bool:
    if damage.data is None:
        return any(span.stop > damage.offset for span in pages.spans if span.kind in IN_USE)
    return any(
        byte != before[offset] and _used(pages.span_at(offset))
        for offset, byte in enumerate(damage.data, damage.offset)
    )


def _used(span: Span | None) -> bool:
    return span is not None and span.kind in IN_USE
