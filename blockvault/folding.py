"""Overlays folded into the trees below them: what checkpoints and snapshots are made of.

An overlay is cheap to add to and dear to open, for whoever opens the branch replays the log since
the last fold.  A fold writes every touched leaf anew, and the nodes above; so both the entries of
the overlays and the leaves that they touch are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from blockvault.model.snapshot import Volume

if TYPE_CHECKING:
    from blockvault.head import HeadDevice
    from blockvault.store.frames import Frame
    from blockvault.store.gathering import ObjectWriter
    from blockvault.vault import Vault

CHECKPOINT_BLOCKS = 57344
"""Overlay entries that start a checkpoint: with the commit before it no more than 65,536."""
CHECKPOINT_LEAVES = 16384
"""Touched leaves that start one: writing them anew is what a checkpoint, or a snapshot, takes."""
LEFT_OVER_BLOCKS = CHECKPOINT_BLOCKS // 8
"""Overlay entries that a session which ends folds as well: the next one need not replay them, and
has the time until its first checkpoint before it."""
NODES_AT_ONCE = 4096
"""Tree nodes that one commit stores at most."""


class Folded(NamedTuple):
    """What the commit behind a fold has to store."""

    volumes: tuple[Volume, ...]
    frames: list[Frame]
    """The last ones of the new nodes."""
    runs: dict[bytes, bytes]
    """Hashes of the runs of new leaves, by leaf id."""


class Folding:
    """The overlays of a session's volumes, ``heads`` by name; for one caller at a time."""

    def __init__(self, vault: Vault, heads: Mapping[str, HeadDevice]) -> None:
        self._vault = vault
        self._heads = heads

    @property
    def wanted(self) -> bool:
        """Whether there is anything to fold."""
        return self._entries > 0

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        leaves = sum(len(head.overlay.leaves) for head in self._heads.values())
        return self._entries >= CHECKPOINT_BLOCKS or leaves >= CHECKPOINT_LEAVES

    @property
    def due_at_the_end(self) -> bool:
        """Whether a session that ends should leave a checkpoint."""
        return self._entries >= LEFT_OVER_BLOCKS

    @property
    def _entries(self) -> int:
        return sum(len(head.overlay) for head in self._heads.values())

    def fold(self, beside: ObjectWriter | None = None) -> Folded:
        """The volumes with their overlays folded in, and what makes them whole.

        All but the last frames are stored by then, in commits without an event: until its commit, a
        row of a large index is a page of memory.  ``beside`` collects blocks for a commit after
        these.
        """
        objects, reader = self._vault.new_objects(), self._vault.objects
        made = _Made(objects)
        volumes = tuple(
            Volume(
                name,
                head.size,
                head.overlay.fold(reader, made, head.tree.root, head.tree.height),
            )
            for name, head in sorted(self._heads.items())
        )
        frames = objects.finish()
        reader.keep_made(made.nodes)
        while sum(len(frame.ids) for frame in frames) > NODES_AT_ONCE:
            first, frames = _divided(frames)
            with self._vault.transaction() as transaction:
                transaction.add_frames(first)
            number = transaction.number
            if beside is not None:
                beside.passed(first, number)
            # What was new when it was folded is so still, if nobody but us committed since.
            if first[0].absent_at == number - 1:
                frames = [frame._replace(absent_at=number) for frame in frames]
        return Folded(volumes, frames, self._runs(made.nodes))

    def _runs(self, made: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Of the leaves that were written whole, those that came into the trees as they were."""
        written = (run for head in self._heads.values() for run in head.runs.values())
        return {leaf: digest for leaf, digest in written if leaf in made}

    def rebase(self, volumes: Sequence[Volume]) -> None:
        """The roots of these volumes are in the log: they take the place of the overlays."""
        for volume in volumes:
            self._heads[volume.name].rebase(volume.root)


class _Made:
    """A sink for tree nodes that hands them on and keeps them: the next fold begins with them."""

    def __init__(self, sink: ObjectWriter) -> None:
        self._sink = sink
        self.nodes: dict[bytes, bytes] = {}

    def add(self, node: bytes) -> bytes:
        return self.add_many([node])[0]

    def add_many(self, nodes: Sequence[bytes]) -> list[bytes]:
        ids = self._sink.add_many(nodes)
        self.nodes.update(zip(ids, nodes, strict=True))
        return ids


def _divided(frames: list[Frame]) -> tuple[list[Frame], list[Frame]]:
    """As many frames as one commit takes, at least one, and the rest."""
    count = taken = 0
    while count < len(frames) and (not count or taken + len(frames[count].ids) <= NODES_AT_ONCE):
        taken += len(frames[count].ids)
        count += 1
    return frames[:count], frames[count:]
