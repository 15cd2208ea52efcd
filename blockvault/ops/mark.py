"""The first phase of a collection: mark what can be reached, and never less.

Roots are what the tables name: every snapshot, the trees of every waypoint, the blocks of every
write that is still reachable; and the trees that living processes have pinned.  They are read page
by page while others write, so what is appended meanwhile is read from the log afterwards
(``catch_up``): an event names all that it adds.

A node or snapshot that cannot be read ends the collection: what hangs on it is not known, and
nothing is dead that might hang on it.  A block that is missing harms no other object; it may only
be the index that lacks it, so the sweep looks for it in what is dead.

A node is marked when all that is under it is.  So at any moment the marks alone say what need not
be looked at again, by this run or, if it is killed, by the next (``marksfile``).  Blocks are looked
up many at a time, which for a large part of the index is much faster; the nodes that name them wait
for that.

A tree is held against the last one of a volume of that name, whose blocks are marked or gathered by
then: of a leaf in which one block changed, one is gathered.  So states are walked as they followed
one another, branch by branch, and snapshots, of which most are states of a branch too, last.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from blockvault import pins
from blockvault.errors import Damaged
from blockvault.ids import ZERO_ID, short
from blockvault.model import events, projections, tree
from blockvault.model.rows import from_row
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import Progress, base, silent
from blockvault.ops.gathered import Gathered
from blockvault.ops.marks import Marks
from blockvault.ops.roots import branch_waypoints, snapshot_ids
from blockvault.store import tables
from blockvault.store.caches import ObjectCache

if TYPE_CHECKING:
    from blockvault.ops.prune import Plan
    from blockvault.vault import Vault

LOOKED_UP_AT_ONCE = 1 << 20
"""Blocks, about 40 bytes of memory each."""
_WEIGHT = 4
"""A node that waits takes as much memory as so many blocks."""
_PARTS_A_READ = 16
NODES_KEPT = 1 << 14
"""Tree nodes that are kept for the trees that follow, about 1.2 KiB each."""


class Marker:
    """Marks what a vault needs, or would need after a prune that is only planned."""

    def __init__(
        self,
        vault: Vault,
        marks: Marks,
        *,
        plan: Plan | None = None,
        since: int = 1,
        note: Callable[[int], None] = lambda seq: None,
        progress: Progress = silent,
    ) -> None:
        """``note`` is called whenever something was marked, with the event before which all writes
        are; those before ``since`` are already.
        """
        self.vault = vault
        self.marks = marks
        self.progress = progress
        self._since = since
        self._note = note
        self._newer: set[bytes] = set()
        self._gathered = Gathered()
        """Blocks that are needed and not looked up yet."""
        self._walked: dict[tuple[str, int], bytes] = {}
        """The tree that was walked last, by volume and height."""
        self._nodes_read = ObjectCache(NODES_KEPT * tree.NODE_SIZE)
        self._waiting: dict[bytes, int] = {}
        """Objects that name others, with their places; see ``_wait``."""
        self._gone = plan.forgotten if plan else frozenset()
        self._dropped = {number for number, _ in plan.dropped} if plan else set()
        self._cuts = {cut.branch: cut.seq for cut in plan.cuts} if plan else {}

    # -- everything --------------------------------------------------------------------------------

    def run(self) -> int:
        """Mark all that the tables name; return the event up to which that holds for sure."""
        with self.vault.read() as reader:
            seq = reader.last().seq
        self.pinned()
        with self.vault.read() as reader:
            branches = [number for number, _ in projections.branches(reader)]
        cuts = {n: self._cut(n) for n in branches if n not in self._dropped}
        for number, cut in cuts.items():
            self._waypoints(number, cut)
        for oid in snapshot_ids(self.vault):
            if oid not in self._gone:
                self.snapshot(oid)
        self._writes(self._since, seq + 1, cuts)
        return seq

    def catch_up(self, seq: int) -> int:
        """Mark what events beyond ``seq`` name; return the last event."""
        with self.vault.read() as reader:
            last = reader.last().seq
        for record in base.records(self.vault, seq + 1, last + 1):
            for row in base.rows_of(record):
                if row[0] == events.WROTE:
                    self.blocks(tree.split_ids(row[6]))
                elif row[0] != events.PRUNED:
                    self._event(from_row(row)[1])
            if self._enough:
                self._settle()
        self._settle()
        return last

    def pinned(self) -> None:
        """Mark what living processes hold on to."""
        for _, held in pins.pinned(self.vault.path):
            self.marks.pinned = True
            for root, height in held.trees:
                self.tree(root, height)
            self.blocks(held.objects)
        self._settle()

    def _event(self, event: events.Event) -> None:
        self.volumes(getattr(event, "volumes", ()))
        snapshot = getattr(event, "snapshot", None)
        if snapshot is not None:
            self.snapshot(snapshot)

    def _cut(self, branch: int) -> int:
        with self.vault.read() as reader:
            cut = projections.cut(reader, branch)
        return max(cut.seq if cut else 0, self._cuts.get(branch, 0))

    def _waypoints(self, branch: int, cut: int) -> None:
        for seq, row in branch_waypoints(self.vault, branch):
            if seq >= cut or (row.snapshot is not None and row.snapshot not in self._gone):
                self.volumes(row.volumes)

    def _writes(self, start: int, stop: int, cuts: dict[int, int]) -> None:
        """Blocks of all writes that their branch still has."""
        for record in base.records(self.vault, start, stop):
            for seq, row in enumerate(base.rows_of(record), record.first_seq):
                if row[0] == events.WROTE and seq >= cuts.get(row[2], stop):
                    self.blocks(tree.split_ids(row[6]))
            if self._enough:
                self._since = record.last_seq + 1
                self._settle()
        self._since = max(self._since, stop)
        self._settle()

    # -- one thing ---------------------------------------------------------------------------------

    def snapshot(self, oid: bytes) -> None:
        """A snapshot and all that it names, but not its parents: those have rows of their own."""
        fresh = self._fresh([oid])
        if fresh:
            # From where the index says: that place is marked, so it must be the right one.
            placed = self.vault.objects.get_placed([(place, oid) for oid, place in fresh])
            found = Snapshot.decode(placed[oid])
            self.volumes((*found.volumes, *found.attachments))
            self._wait(fresh)

    def volumes(self, volumes: Iterable[Volume]) -> None:
        size = self.vault.options.block_size
        for volume in volumes:
            self.tree(volume.root, tree.depth(tree.blocks_in(volume.size, size)), volume.name)

    def tree(self, root: bytes, height: int, volume: str = "") -> None:
        """All nodes and blocks under a root; likely like the last one of a volume of this name."""
        self._nodes({root: self._walked.get((volume, height), ZERO_ID)}, height)
        self._walked[volume, height] = root

    def blocks(self, ids: Collection[bytes]) -> None:
        """Objects that name no others."""
        self._gathered.add(ids)

    def _wait(self, some: Iterable[tuple[bytes, int]]) -> None:
        """Objects that name others: all that they name is marked or gathered by now."""
        self._waiting.update(some)
        if self._enough:
            self._settle()

    @property
    def _enough(self) -> bool:
        return len(self._gathered) + _WEIGHT * len(self._waiting) >= LOOKED_UP_AT_ONCE

    def _settle(self) -> None:
        """Mark the blocks that were gathered, and then the nodes that waited for that."""
        if not self._gathered and not self._waiting:
            return
        self.marks.mark(self._places())
        self._gathered.clear()
        for oid, place in self._waiting.items():
            if not self.marks.walk(place, oid):
                self._newer.add(oid)
        self.marks.mark(self._waiting.values())
        self._waiting.clear()
        self.progress(self.marks.marked, self.marks.objects)
        self._note(self._since)

    def _places(self) -> array[int]:
        """Where the blocks lie that were gathered."""
        places = array("Q")
        for start in range(0, tables.INDEX_PARTS, _PARTS_A_READ):
            parts = range(start, start + _PARTS_A_READ)
            wanted = [(first, ids) for first in parts if (ids := self._gathered.part(first))]
            if wanted:
                with self.vault.read() as reader:
                    for first, ids in wanted:
                        found = reader.places(first, ids)
                        places.extend(found)
                        if len(found) < len(ids):
                            self.marks.lack(ids - reader.indexed(list(ids)))
        return places

    def _nodes(self, ids: Mapping[bytes, bytes], height: int) -> None:
        """Nodes of one height, each with the one in its place in the tree that was walked last."""
        fresh = self._fresh([oid for oid in ids if oid != ZERO_ID])
        for at in range(0, len(fresh), tree.BATCH):
            some = fresh[at : at + tree.BATCH]
            got = self.vault.objects.get_placed([(place, oid) for oid, place in some])
            below: dict[bytes, bytes] = {}
            for oid, node in got.items():
                below.update(self._beside(node, ids[oid]))
            for oid, node in got.items():
                self._nodes_read.put(oid, node)
            if height > 1:
                self._nodes(below, height - 1)
            else:
                self.blocks(below)
            self._wait(some)

    def _beside(self, node: bytes, walked: bytes) -> dict[bytes, bytes]:
        """The children of a node that a node walked before has not in their places, each with what
        that has there."""
        before = self._nodes_read.get(walked)
        if before is None:
            return dict.fromkeys(tree.children(node), ZERO_ID)
        pairs = zip(tree.children(node), tree.children(before), strict=True)
        return {child: there for child, there in pairs if child != there}

    def _fresh(self, ids: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """Objects that name others and are not done or waiting yet, with their places."""
        ids = [oid for oid in ids if oid not in self._waiting]
        if not ids:
            return []
        with self.vault.read() as reader:
            places = reader.locate(ids)
        fresh = []
        for oid, place in zip(ids, places, strict=True):
            if place is None:
                raise Damaged(
                    f"object {short(oid)} is missing, so it is not known what else is needed; "
                    "nothing was collected. 'blockvault verify' tells more",
                    kind="object-missing",
                )
            done = self.marks.walked(place, oid)
            if not (oid in self._newer if done is None else done):
                fresh.append((oid, place))
        return fresh
