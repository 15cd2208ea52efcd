"""repair: bring back what is lost, and never make it worse.

    plan      verify, then look for each lost object in good sources
    execute   store the good copies, mend index and projections, quarantine what is still lost

A good copy is proved by its id, so a source need not be trusted: another vault, or an image file
that holds the blocks at any place.  What is found is stored as a new frame and the index points
there; the damaged frame stays where it is, as evidence and because its other objects may be whole.
What is not found is taken out of the index: reading it fails as missing, it is never returned
wrong, and the same content, written again by anybody, heals every state that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from blockvault import pins
from blockvault.errors import BadRequest, Damaged, VaultError
from blockvault.ids import ZERO_ID, object_id
from blockvault.model import tree
from blockvault.ops import Progress, check, damage, images, rebuild, silent
from blockvault.ops.damage import Touched
from blockvault.ops.report import Report
from blockvault.store import frames, tables
from blockvault.store.codec import Codec

if TYPE_CHECKING:
    from blockvault.vault import Vault

Look = Callable[[set[bytes]], dict[bytes, bytes]]
"""Asks a source for objects; gives those that it has."""

_BATCH = 4096
_LOOK_BYTES = 4 << 20


@dataclass(slots=True)
class Plan:
    """What is wrong, what can be had again, and what the rest touches.

    ``broken_log`` says where the log has a hole: it cannot be replayed, so tables and index stay as
    they are.
    """

    report: Report
    found: dict[bytes, bytes] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    lost: frozenset[bytes] = frozenset()
    touched: tuple[Touched, ...] = ()
    broken_log: str = ""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return self.report.ok


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was done; ``lost`` objects could not be found and are quarantined."""

    restored: int
    quarantined: int
    rows: int
    index_entries: int


def plan(vault: Vault, sources: Sequence[Path] = (), *, progress: Progress = silent) -> Plan:
    """Verify everything, and look for what is lost; nothing is changed.  ``Damaged`` if the
    structure of the database is.

    A node that is found may name others that are lost, which the first look could not see: the
    search goes on until it learns nothing more.
    """
    made = Plan(check.verify(vault, progress=progress))
    structure = [p.message for p in made.report.problems if p.kind == "structure-damaged"]
    if not rebuild.only_disorder(structure):
        raise Damaged(
            "the pages of the database are damaged, and nothing was changed. Copy the vault "
            "directory before anything else; then restore a copy of the vault, or export from this "
            f"one what can still be read ({structure[0]})",
            kind="structure-damaged",
        )
    try:
        rebuild.differences(vault)
    except Damaged as error:
        made.broken_log = error.message
    missing = set(made.report.lost)
    missing |= {each.object for each in made.report.touched}
    if missing and not made.broken_log:
        missing -= _unindexed(vault)
    with vault.guard():
        _search(vault, made, missing, sources)
        made.lost = frozenset(missing - made.found.keys())
        made.touched = tuple(damage.touched(vault, made.lost)) if made.lost else ()
    return made


def _unindexed(vault: Vault) -> set[bytes]:
    """Objects that lie in the vault's own frames, and only the index does not say so."""
    changes, _ = rebuild.index_differences(vault)
    return {oid for _, oid, place in changes if place is not None}


def execute(vault: Vault, made: Plan) -> Repaired:
    """Carry out a plan: restored objects, then index and projections, then the quarantine.

    ``Busy`` beside a collection; then nothing is changed.
    """
    with pins.sole(vault.path, "gc"), vault.guard():
        _restore(vault, made.found)
        vault.objects.close()
        gone = _quarantine(vault, made.lost)
        if made.broken_log:
            return Repaired(len(made.found), gone, 0, 0)
        mended = rebuild.rebuilt(vault)
        return Repaired(len(made.found), gone, mended.changed_rows, mended.index_entries)


def _restore(vault: Vault, found: dict[bytes, bytes]) -> None:
    codec = Codec(vault.options.compression)
    block = vault.options.block_size
    for blocks in (True, False):
        chosen = [pair for pair in found.items() if (len(pair[1]) == block) == blocks]
        for at in range(0, len(chosen), 64):
            some = chosen[at : at + 64]
            data = frames.encode([content for _, content in some], codec)
            with vault.store.write() as writer:
                writer.move_frames([frames.Frame(data, tuple(oid for oid, _ in some))])


def _quarantine(vault: Vault, lost: Iterable[bytes]) -> int:
    """Take lost objects out of the index, unless they turn out to be readable."""
    gone = []
    for oid in lost:
        try:
            vault.objects.get(oid)
        except Damaged:
            gone.append(oid)
    for at in range(0, len(gone), _BATCH):
        with vault.store.write() as writer:
            some = gone[at : at + _BATCH]
            # An import takes all blocks of a leaf for stored whose run it knows.
            writer.clear(tables.RUNS)
            writer.unindex(sorted(writer.indexed(some)))
    return len(gone)


# -- looking for good copies -----------------------------------------------------------------------


def _search(vault: Vault, made: Plan, missing: set[bytes], sources: Sequence[Path]) -> None:
    for source in sources:
        before = len(made.found)
        with _looker(vault, source) as look:
            while wanted := missing - made.found.keys():
                fresh = look(wanted)
                if not fresh:
                    break
                made.found.update(fresh)
                missing |= _below(vault, fresh.values())
        made.sources[str(source)] = len(made.found) - before


def _below(vault: Vault, contents: Iterable[bytes]) -> set[bytes]:
    """Objects that restored nodes name and the vault does not have."""
    ids = {
        child
        for content in contents
        if len(content) == tree.NODE_SIZE
        for child in tree.children(content)
        if child != ZERO_ID
    }
    missing = set()
    for oid in ids:
        try:
            vault.objects.get(oid)
        except Damaged:
            missing.add(oid)
    return missing


@contextmanager
def _looker(vault: Vault, source: Path) -> Iterator[Look]:
    """How to ask a source for objects: a vault by id, an image by hashing all of its blocks."""
    from blockvault.vault import DIRECTORY, Vault

    if not source.is_dir():
        yield lambda wanted: dict(_from_image(vault, source, wanted))
        return
    home = source if source.name == DIRECTORY else source / DIRECTORY
    if not home.is_dir():
        raise BadRequest(f"{source} is neither a vault nor an image")
    if home.resolve() == vault.path.resolve():
        raise BadRequest(f"{source} is the vault that is to be repaired")
    with Vault.open(home) as other:
        yield lambda wanted: dict(_from_vault(other, wanted))


def _from_vault(other: Vault, wanted: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for oid in wanted:
        try:
            yield oid, other.objects.get(oid)
        except VaultError:
            continue


def _from_image(vault: Vault, path: Path, wanted: set[bytes]) -> Iterator[tuple[bytes, bytes]]:
    size = vault.options.block_size
    with images.opened(path, images.format_of(path, None), vault.path, False) as image:
        for start, end in image.data_runs():
            for at in range(start // size * size, end, _LOOK_BYTES):
                data = image.read(at, min(_LOOK_BYTES, -(-(end - at) // size) * size))
                for cut in range(0, len(data), size):
                    content = data[cut : cut + size].ljust(size, b"\0")
                    oid = object_id(content)
                    if oid in wanted:
                        yield oid, content
