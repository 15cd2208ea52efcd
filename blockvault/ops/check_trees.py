"""The trees of a verify: every node is read, and of blocks it is looked whether they are there.

A look from the roots ends where a node is lost.  A repair that finds this node elsewhere looks on
from there (``Below``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from blockvault.errors import Damaged
from blockvault.ids import ZERO_ID, short
from blockvault.model import tree
from blockvault.model.snapshot import Volume
from blockvault.ops.needed import Needed
from blockvault.ops.report import Problem, Report

if TYPE_CHECKING:
    from blockvault.vault import Vault

_TOGETHER = 1024
"""Blocks that are read at once: some MiB."""


class _Nodes:
    """Tree nodes; one that cannot be read is told, and is empty: the walk goes on beside it."""

    def __init__(self, vault: Vault, report: Report) -> None:
        self.vault = vault
        self.report = report

    def get_many(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        try:
            return tree.fetch(self.vault.objects, ids)
        except Damaged:
            return {oid: self._one(oid) for oid in ids}

    def _one(self, oid: bytes) -> bytes:
        try:
            return tree.fetch(self.vault.objects, [oid])[oid]
        except Damaged as error:
            self.report.problems.append(Problem(error.reason, error.message, oid))
            return tree.BLANK


class Trees:
    """Walks trees, every node once however many states share it."""

    def __init__(self, vault: Vault, report: Report, needed: Needed) -> None:
        self.vault = vault
        self.report = report
        self.needed = needed
        self._nodes = _Nodes(vault, report)
        self._seen: set[bytes] = set()
        self._told: set[bytes] = set()

    def check(self, volume: Volume) -> None:
        """Every node is there and is what its id says; its blocks are needed."""
        self._check([self._root(volume)])

    def check_below(self, node: bytes, height: int) -> None:
        """The same of what a node names."""
        if height == 1:
            self.needed.add(tree.children(node))
        else:
            self._check([(child, height - 1) for child in tree.children(node)])

    def _check(self, roots: Sequence[tuple[bytes, int]]) -> None:
        for level, _, node in tree.reachable(self._nodes, roots, self._seen):
            if level == 1:
                self.needed.add(tree.children(node))

    def know(self, volumes: Iterable[Volume]) -> None:
        """Pass these trees over from now on: they are not new."""
        for volume in volumes:
            for _ in self._walk(volume):
                pass

    def read(self, volume: Volume) -> None:
        """Read every block below nodes that were not met before."""
        self.read_blocks(self._blocks(volume), f"volume '{volume.name}'")

    def _blocks(self, volume: Volume) -> Iterator[bytes]:
        for level, _, node in self._walk(volume):
            self.report.objects += 1
            if level == 1:
                yield from tree.children(node)

    def _walk(self, volume: Volume) -> Iterator[tuple[int, bytes, bytes]]:
        return tree.reachable(self._nodes, [self._root(volume)], self._seen)

    def _root(self, volume: Volume) -> tuple[bytes, int]:
        blocks = tree.blocks_in(volume.size, self.vault.options.block_size)
        return volume.root, tree.depth(blocks)

    def read_blocks(self, ids: Iterable[bytes], where: str) -> None:
        """Read blocks and hash them; those that cannot be read are named, each once."""
        left = (oid for oid in ids if oid != ZERO_ID)
        while wanted := list(dict.fromkeys(islice(left, _TOGETHER))):
            try:
                self.vault.objects.get_many(wanted)
            except Damaged:
                self._read_each(wanted, where)
            self.report.objects += len(wanted)
            self.report.bytes += len(wanted) * self.vault.options.block_size

    def _read_each(self, wanted: Iterable[bytes], where: str) -> None:
        for oid in wanted:
            try:
                self.vault.objects.get(oid)
            except Damaged as error:
                if oid not in self._told:
                    self._told.add(oid)
                    message = f"block {short(oid)} of {where}: {error.message}"
                    self.report.problems.append(Problem(error.reason, message, oid))


class Below:
    """What is lost below objects that a look from the roots could not read."""

    def __init__(self, vault: Vault) -> None:
        self._objects = vault.objects
        self._report = Report()
        self._needed = Needed(vault)
        self._trees = Trees(vault, self._report, self._needed)

    def volume(self, volume: Volume) -> None:
        """Look under a volume that such a snapshot names."""
        self._trees.check(volume)

    def node(self, node: bytes) -> None:
        """Look under such a node of a tree."""
        self._trees.check_below(node, self._height(node))

    def lost(self) -> set[bytes]:
        """All that was found to be lost so far."""
        return {*self._report.lost, *self._needed.missing()}

    def _height(self, node: bytes) -> int:
        """How far it is down to the blocks; too little where what is between is lost as well: that
        is a node to look under itself, once it is found.
        """
        height = 1
        below = self._child(node)
        while len(below) == tree.NODE_SIZE:
            height, below = height + 1, self._child(below)
        return height

    def _child(self, node: bytes) -> bytes:
        """The first child that can be read, if any."""
        for child in tree.children(node):
            if child != ZERO_ID:
                try:
                    return self._objects.get(child)
                except Damaged:
                    continue
        return b""
