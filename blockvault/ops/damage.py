"""What a damaged object touches: which bytes of which volumes, in which states.

All trees that the vault keeps are walked with the lost ids in hand; a subtree that lacks nothing is
walked once, however many states share it, and every state that lacks something is told.  A lost
node stands for all that it covered.  What single writes put down since then is found in the log.

Ranges that touch each other are one as soon as they are met, and a state has so many at most: what
is told must fit in memory even where a large part of the index is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from blockvault.errors import Damaged
from blockvault.ids import ZERO_ID, short
from blockvault.model import events, projections, tree
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import base, roots

if TYPE_CHECKING:
    from blockvault.vault import Vault


RANGES = 1000
"""Ranges of a volume of a state that are told apart; the last one holds all that follow."""


class Touched(NamedTuple):
    """A range of a volume that needs lost objects, in the state that the revision names.

    ``object`` is the first of them, ``objects`` how many there are.
    """

    object: bytes
    revision: str
    volume: str
    offset: int
    length: int
    objects: int = 1


def touched(vault: Vault, lost: Iterable[bytes]) -> list[Touched]:
    """Where these objects are needed, by state, volume and offset."""
    search = _Search(vault, frozenset(lost))
    found: list[Touched] = []
    for revision, volume in _states(vault):
        found += _merged(
            Touched(oid, revision, volume.name, offset, length)
            for oid, offset, length in search.volume(volume)
        )
    with contextlib.suppress(Damaged):  # a log that cannot be read is a problem of its own
        for write in _in_the_log(vault, search.lost):
            found += _merged(write)
    return sorted(found, key=lambda each: (each.revision, each.volume, each.offset))


def _merged(ranges: Iterable[Touched]) -> Iterator[Touched]:
    """Ranges of one volume in order, those that touch each other as one."""
    last: Touched | None = None
    count = 0
    for each in ranges:
        if last is None or (each.offset > last.offset + last.length and count < RANGES):
            if last is not None:
                yield last
            last, count = each, count + 1
            continue
        end = max(last.offset + last.length, each.offset + each.length)
        last = last._replace(length=end - last.offset, objects=last.objects + each.objects)
    if last is not None:
        yield last


def _in_the_log(vault: Vault, lost: frozenset[bytes]) -> Iterator[list[Touched]]:
    """What each write names of lost blocks, by the state just after it."""
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
            revision = f"{names[branch]}@{{#{seq}}}"
            yield [
                Touched(oid, revision, volume, at * size, size)
                for at, oid in enumerate(tree.split_ids(ids), offset // size)
                if oid in lost
            ]


def _states(vault: Vault) -> Iterator[tuple[str, Volume]]:
    """Every volume of every state, by a revision that names it."""
    for oid in roots.snapshot_ids(vault):
        try:
            snapshot = Snapshot.decode(vault.objects.get(oid))
        except Damaged:
            continue
        for volume in (*snapshot.volumes, *snapshot.attachments):
            yield short(oid), volume
    with vault.read() as reader:
        branches = list(projections.branches(reader))
    for number, row in branches:
        for seq, waypoint in roots.branch_waypoints(vault, number):
            if waypoint.snapshot is None and not row.deleted:
                for volume in waypoint.volumes:
                    yield f"{row.name}@{{#{seq}}}", volume


class _Search:
    """Finds lost ids under roots; what lacks nothing is remembered."""

    def __init__(self, vault: Vault, lost: frozenset[bytes]) -> None:
        self.vault = vault
        self.lost = lost
        self._clean: set[bytes] = set()

    def volume(self, volume: Volume) -> Iterator[tuple[bytes, int, int]]:
        """(lost id, offset, length), in order."""
        size = self.vault.options.block_size
        height = tree.depth(tree.blocks_in(volume.size, size))
        for oid, first, count in self._under(volume.root, height):
            start, stop = first * size, min((first + count) * size, volume.size)
            yield oid, start, stop - start

    def _under(self, oid: bytes, height: int) -> Iterator[tuple[bytes, int, int]]:
        """(lost id, first block, blocks) below a node, counted from its first block."""
        if oid == ZERO_ID or oid in self._clean:
            return
        node = None if oid in self.lost else self._node(oid)
        if node is None:
            yield oid, 0, tree.capacity(height)
            return
        clean = True
        for found in self._below(node, height):
            clean = False
            yield found
        if clean:
            self._clean.add(oid)

    def _node(self, oid: bytes) -> bytes | None:
        try:
            return self.vault.objects.get(oid)
        except Damaged:
            return None

    def _below(self, node: bytes, height: int) -> Iterator[tuple[bytes, int, int]]:
        children = tree.children(node)
        if height == 1:
            if not self.lost.isdisjoint(children):
                yield from ((oid, at, 1) for at, oid in enumerate(children) if oid in self.lost)
            return
        below = tree.capacity(height - 1)
        for at, child in enumerate(children):
            for lost, first, count in self._under(child, height - 1):
                yield lost, at * below + first, count
