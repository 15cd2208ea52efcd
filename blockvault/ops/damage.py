"""What a damaged object touches: which bytes of which volumes, in which states.

All trees that the vault keeps are walked once with the lost ids in hand; a subtree that several
states share is walked once, and every state that has it is told.  A lost node stands for all that
it covered.  What single writes put down since then is found in the log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from blockvault.errors import Damaged
from blockvault.ids import ZERO_ID, short
from blockvault.model import events, projections, tree
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import base, mark

if TYPE_CHECKING:
    from blockvault.vault import Vault


class Touched(NamedTuple):
    """A range of a volume that needs a lost object, in the state that the revision names."""

    object: bytes
    revision: str
    volume: str
    offset: int
    length: int


def touched(vault: Vault, lost: Iterable[bytes]) -> list[Touched]:
    """Where these objects are needed, by state, volume and offset."""
    search = _Search(vault, frozenset(lost))
    found = []
    for revision, volume in _states(vault):
        for oid, offset, length in search.volume(volume):
            found.append(Touched(oid, revision, volume.name, offset, length))
    with contextlib.suppress(Damaged):  # a log that cannot be read is a problem of its own
        found += _in_the_log(vault, search.lost)
    return found


def merged(found: Iterable[Touched]) -> Iterator[tuple[Touched, int]]:
    """The same for people: ranges that touch each other as one, with how many objects they are."""
    last: Touched | None = None
    count = 0
    for each in sorted(found, key=lambda each: (each.revision, each.volume, each.offset)):
        if last is not None and last[1:3] == each[1:3] and each.offset <= last.offset + last.length:
            end = max(last.offset + last.length, each.offset + each.length)
            last, count = last._replace(length=end - last.offset), count + 1
            continue
        if last is not None:
            yield last, count
        last, count = each, 1
    if last is not None:
        yield last, count


def _in_the_log(vault: Vault, lost: frozenset[bytes]) -> Iterator[Touched]:
    """Writes that name lost blocks, by the state just after each."""
    size = vault.options.block_size
    with vault.read() as reader:
        names = {number: row.name for number, row in projections.branches(reader)}
        cuts = {number: projections.cut(reader, number) for number in names}
    for record in base.records(vault):
        for seq, row in enumerate(base.rows_of(record), record.first_seq):
            if row[0] != events.WROTE or row[2] not in names:
                continue
            cut = cuts[row[2]]
            if cut is not None and seq < cut.seq:
                continue
            _, _, branch, volume, offset, _, ids = row
            for at, oid in enumerate(tree.split_ids(ids), offset // size):
                if oid in lost:
                    yield Touched(oid, f"{names[branch]}@{{#{seq}}}", volume, at * size, size)


def _states(vault: Vault) -> Iterator[tuple[str, Volume]]:
    """Every volume of every state, by a revision that names it."""
    for oid in mark.snapshot_ids(vault):
        try:
            snapshot = Snapshot.decode(vault.objects.get(oid))
        except Damaged:
            continue
        for volume in (*snapshot.volumes, *snapshot.attachments):
            yield short(oid), volume
    with vault.read() as reader:
        branches = list(projections.branches(reader))
    for number, row in branches:
        for seq, waypoint in mark.branch_waypoints(vault, number):
            if waypoint.snapshot is None and not row.deleted:
                for volume in waypoint.volumes:
                    yield f"{row.name}@{{#{seq}}}", volume


class _Search:
    """Finds lost ids under roots; what is under a node is remembered if it is not empty."""

    def __init__(self, vault: Vault, lost: frozenset[bytes]) -> None:
        self.vault = vault
        self.lost = lost
        self._clean: set[bytes] = set()
        self._found: dict[bytes, list[tuple[bytes, int, int]]] = {}

    def volume(self, volume: Volume) -> Iterator[tuple[bytes, int, int]]:
        size = self.vault.options.block_size
        height = tree.depth(tree.blocks_in(volume.size, size))
        for oid, first, count in self._under(volume.root, height):
            start, stop = first * size, min((first + count) * size, volume.size)
            yield oid, start, stop - start

    def _under(self, oid: bytes, height: int) -> list[tuple[bytes, int, int]]:
        """(lost id, first block, blocks) below a node, counted from its first block."""
        if oid == ZERO_ID or oid in self._clean:
            return []
        if oid in self.lost:
            return [(oid, 0, tree.capacity(height))]
        if height == 0:
            return []
        known = self._found.get(oid)
        if known is None:
            known = self._look(oid, height)
            if known:
                self._found[oid] = known
            else:
                self._clean.add(oid)
        return known

    def _look(self, oid: bytes, height: int) -> list[tuple[bytes, int, int]]:
        try:
            node = self.vault.objects.get(oid)
        except Damaged:
            return [(oid, 0, tree.capacity(height))]
        below = tree.capacity(height - 1)
        return [
            (lost, at * below + first, count)
            for at, child in enumerate(tree.children(node))
            for lost, first, count in self._under(child, height - 1)
        ]
