"""Which throw-away layer an export's name means, in a server with copy-on-write.

A client that comes back must find what it wrote, whatever has become of the branch meanwhile.  So a
revision means what it meant first for as long as somebody has its layer open or has written to it,
by whatever name any client came; those that the server was told to offer, for as long as it
runs.  A layer that nobody wrote to ends with its last client.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from blockvault.device import Device
from blockvault.errors import Busy, VaultError
from blockvault.nbd.cow import CopyOnWrite
from blockvault.ops.positions import Position


class Layers:
    """The layers of one server; safe to use from several threads."""

    def __init__(self, directory: Path | None) -> None:
        """What is written goes to files without a name in ``directory``, or where others go."""
        self._directory = directory
        self._layers: dict[tuple[str, str], CopyOnWrite] = {}
        """By the canonical name of the state, and the volume."""
        self._bases: dict[tuple[str, str], Device] = {}
        """Of what is offered, by the same: its history may be pruned meanwhile."""
        self._meanings: dict[str, Position] = {}
        self._offered: set[str] = set()
        self._lock = threading.Lock()

    def offer(
        self, revisions: Iterable[str], position: Position, base: Callable[[str], Device]
    ) -> None:
        """Let revisions mean this for good, whose volumes ``base`` opens."""
        for revision in revisions:
            self._meanings[revision] = position
            self._offered.add(revision)
        for volume, _, _ in position.volumes:
            with contextlib.suppress(VaultError):  # whoever comes for it is told why
                self._bases[position.canonical, volume] = base(volume)

    def meaning(self, revision: str) -> Position | None:
        """What a revision means already; None if it is to be resolved."""
        with self._lock:
            return self._meanings.get(revision)

    def open(
        self,
        revision: str,
        position: Position,
        volume: str,
        base: Callable[[], Device],
    ) -> CopyOnWrite:
        """The layer over a volume of a state, made if there is none yet; may raise as ``join``.

        Nobody else opens, joins or leaves the same volume of the same state meanwhile.
        """
        key = position.canonical, volume
        layer = self._layers.get(key)
        if layer is None:
            layer = CopyOnWrite(self._bases.get(key) or base(), self._directory)
        with self._lock:
            self._note(revision, position)
            self._layers[key] = layer
        return layer

    def join(self, revision: str, position: Position) -> None:
        """A client has come to an open layer by this name; ``Busy`` if that has come to mean
        another state since the client asked: now it can be resolved again.
        """
        with self._lock:
            self._note(revision, position)

    def _note(self, revision: str, position: Position) -> None:
        meant = self._meanings.setdefault(revision, position)
        if meant.canonical != position.canonical:
            raise Busy(f"'{revision}' has come to mean {meant.canonical}: ask for it again")

    def left(self, position: Position, volume: str) -> None:
        """The last client of a layer has gone: forget it if nobody wrote to it, and with the last
        layer of a state what revisions mean that.
        """
        state = position.canonical
        with self._lock:
            if self._layers[state, volume].written:
                return
            self._layers.pop((state, volume)).close()
            if all(other != state for other, _ in self._layers):
                self._meanings = {
                    revision: meant
                    for revision, meant in self._meanings.items()
                    if revision in self._offered or meant.canonical != state
                }

    def close(self) -> None:
        """Throw away all that was written."""
        with self._lock:
            for layer in self._layers.values():
                layer.close()
            self._layers.clear()
            self._bases.clear()
            self._meanings.clear()
