"""repair: bring back what is lost, and never make it worse.

    plan      verify, then look for each lost object in good sources
    execute   store the good copies, mend index and projections, quarantine what is still lost
    repair    both, with no collection from the first look on

A good copy is proved by its id, so a source need not be trusted: another vault, or an image file
that holds the blocks at any place.  A plan only says which source has what; what is stored is read
again, some at a time, so that any amount can be brought back.  It becomes new frames and the index
points there; damaged frames stay where they are, as evidence and because their other objects may be
whole.
What is not found is taken out of the index: reading it fails as missing, it is never returned
wrong, and the same content, written again by anybody, heals every state that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from blockvault import pins
from blockvault.errors import BadRequest, Damaged, VaultError
from blockvault.ids import object_id
from blockvault.model import projections, tree
from blockvault.model.snapshot import Snapshot
from blockvault.ops import Progress, check, damage, formats, images, rebuild, silent
from blockvault.ops.check_trees import Below
from blockvault.ops.damage import Touched
from blockvault.ops.report import Report
from blockvault.store import frames, tables
from blockvault.store.codec import Codec

if TYPE_CHECKING:
    from blockvault.store.types import Reader
    from blockvault.vault import Vault

Pair = tuple[bytes, bytes]
"""An object's id, and its bytes."""

Look = Callable[[Set[bytes]], Iterator[Pair]]
"""Asks a source for objects; gives those that it has, each once."""

_BATCH = 4096
_STORED_AT_ONCE = 512
_FRAME_OBJECTS = 64
_LOOK_BYTES = 4 << 20


@dataclass(slots=True)
class Plan:
    """What is wrong, what can be had again, and what the rest touches.

    ``found`` says in which source an object is, ``sources`` how many were found in each.
    ``broken_log`` says where the log has a hole: it cannot be replayed, so tables and index stay as
    they are.
    """

    report: Report
    found: dict[bytes, Path] = field(default_factory=dict)
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


def repair(
    vault: Vault, sources: Sequence[Path] = (), *, progress: Progress = silent
) -> tuple[Plan, Repaired | None]:
    """Plan and execute; None if nothing is wrong.  ``Busy`` beside a collection, before the looking
    that may take hours; and none begins until the end.
    """
    with pins.sole(vault.path, "gc"):
        made = plan(vault, sources, progress=progress)
        return made, None if made.sound else _execute(vault, made)


def plan(vault: Vault, sources: Sequence[Path] = (), *, progress: Progress = silent) -> Plan:
    """Verify everything, and look for what is lost; nothing is changed.  ``Damaged`` if the
    structure of the database is.

    A node or a snapshot that is found may name others that are lost, which the first look could not
    see: the search goes on until it learns nothing more.
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
    unindexed = _unindexed(vault) if missing and not made.broken_log else set()
    with vault.guard():
        missing = _search(vault, made, missing - unindexed, unindexed, sources)
        made.lost = frozenset(missing - made.found.keys())
        made.touched = tuple(damage.touched(vault, made.lost)) if made.lost else ()
    return made


def _unindexed(vault: Vault) -> set[bytes]:
    """Objects that lie in the vault's own frames, and only the index does not say so."""
    changes, _ = rebuild.index_differences(vault)
    return {oid for _, oid, place in changes if place is not None}


def execute(vault: Vault, made: Plan) -> Repaired:
    """Carry out a plan: restored objects, then index and projections, then the quarantine.

    ``Busy`` beside a collection; then nothing is changed.  What a source does not have any more is
    ``lost`` in the plan from then on.
    """
    with pins.sole(vault.path, "gc"):
        return _execute(vault, made)


def _execute(vault: Vault, made: Plan) -> Repaired:
    with vault.guard():
        made.lost |= _restore(vault, made.found)
        restored = len(made.found.keys() - made.lost)
        vault.objects.close()
        gone = _quarantine(vault, made.lost)
        if made.broken_log:
            return Repaired(restored, gone, 0, 0)
        mended = rebuild.rebuilt(vault)
        return Repaired(restored, gone, mended.changed_rows, mended.index_entries)


def _restore(vault: Vault, found: Mapping[bytes, Path]) -> set[bytes]:
    """Store the good copies; return those that are not there any more."""
    left = set(found)
    for source in dict.fromkeys(found.values()):
        wanted = {oid for oid, where in found.items() if where == source}
        with _looker(vault, source) as look:
            for some in _batches(look(wanted)):
                _store(vault, some)
                left.difference_update(oid for oid, _ in some)
    return left


def _store(vault: Vault, pairs: Sequence[Pair]) -> None:
    """Store objects, blocks and nodes apart, and let the index point there."""
    codec, block = Codec(vault.options.compression), vault.options.block_size
    made = []
    for blocks in (True, False):
        chosen = [pair for pair in pairs if (len(pair[1]) == block) == blocks]
        for at in range(0, len(chosen), _FRAME_OBJECTS):
            some = chosen[at : at + _FRAME_OBJECTS]
            data = frames.encode([content for _, content in some], codec)
            made.append(frames.Frame(data, tuple(oid for oid, _ in some)))
    with vault.store.write() as writer:
        writer.move_frames(made)


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


def _search(
    vault: Vault, made: Plan, missing: set[bytes], unindexed: set[bytes], sources: Sequence[Path]
) -> set[bytes]:
    """Say which source has what; return all that is missing, as far as the nodes found tell it.

    Vaults are asked first, all of them again and again: a node that one has may name what another
    has.  An image has only blocks, which name nothing, so it is read once.
    """
    made.sources = dict.fromkeys(map(str, sources), 0)
    with ExitStack() as stack:
        looks = {source: stack.enter_context(_looker(vault, source)) for source in sources}
        asked, below = missing, Below(vault)
        while asked:
            for source in looks:
                if source.is_dir():
                    for some in _ask(made, source, looks[source], asked):
                        _look_below(vault, below, some)
            asked = below.lost() - missing - unindexed
            missing = missing | asked
        for source in looks:
            if not source.is_dir():
                for _ in _ask(made, source, looks[source], missing):
                    pass
    return missing


def _ask(made: Plan, source: Path, look: Look, wanted: set[bytes]) -> Iterator[list[Pair]]:
    """Note what a source has of what nobody else has, and give it."""
    if left := wanted - made.found.keys():
        for some in _batches(look(left)):
            made.found.update((oid, source) for oid, _ in some)
            made.sources[str(source)] += len(some)
            yield some


def _batches(pairs: Iterator[Pair]) -> Iterator[list[Pair]]:
    while some := list(islice(pairs, _STORED_AT_ONCE)):
        yield some


def _look_below(vault: Vault, below: Below, pairs: Sequence[Pair]) -> None:
    """Look under nodes and snapshots, which the verify could not."""
    with vault.read() as reader:
        snapshots = {oid for oid, _ in pairs if _is_snapshot(reader, oid)}
    for oid, content in pairs:
        if oid in snapshots:
            snapshot = Snapshot.decode(content)
            for volume in (*snapshot.volumes, *snapshot.attachments):
                below.volume(volume)
        elif len(content) == tree.NODE_SIZE:
            below.node(content)


def _is_snapshot(reader: Reader, oid: bytes) -> bool:
    """Whether the tables say so: by its content alone a guest's block may be one as well."""
    try:
        return projections.recorded(reader, oid) is not None
    except Damaged:
        return False  # that row is lost, too, and comes back; the next repair looks further


@contextmanager
def _looker(vault: Vault, source: Path) -> Iterator[Look]:
    """How to ask a source for objects: a vault by id, an image by hashing all of its blocks."""
    from blockvault.vault import DIRECTORY, Vault

    if not source.is_dir():
        yield lambda wanted: _from_image(vault, source, wanted)
        return
    home = source if source.name == DIRECTORY else source / DIRECTORY
    if not home.is_dir():
        raise BadRequest(f"{source} is neither a vault nor an image")
    if home.resolve() == vault.path.resolve():
        raise BadRequest(f"{source} is the vault that is to be repaired")
    with Vault.open(home) as other:
        yield lambda wanted: _from_vault(other, wanted)


def _from_vault(other: Vault, wanted: Iterable[bytes]) -> Iterator[Pair]:
    for oid in wanted:
        try:
            yield oid, other.objects.get(oid)
        except VaultError:
            continue


def _from_image(vault: Vault, path: Path, wanted: Set[bytes]) -> Iterator[Pair]:
    size, left = vault.options.block_size, set(wanted)
    with images.opened(path, formats.by_name(path), vault.path, False) as image:
        for start, end in image.data_runs():
            for at in range(start // size * size, end, _LOOK_BYTES):
                data = image.read(at, min(_LOOK_BYTES, -(-(end - at) // size) * size))
                for cut in range(0, len(data), size):
                    content = data[cut : cut + size].ljust(size, b"\0")
                    oid = object_id(content)
                    if oid in left:
                        left.remove(oid)
                        yield oid, content
                if not left:
                    return
