"""Which throw-away layer an export's name means, in a server with copy-on-write.

A client that comes back must find what it wrote, whatever has become of the branch meanwhile.  So a
revision means what it meant first for as long as somebody has its layer open or has written to it;
those that the server was told to offer, for as long as it runs.  A layer that nobody wrote to ends
with its last client.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from blockvault.device import Device
from blockvault.nbd.cow import CopyOnWrite
from blockvault.ops.positions import Position


class _State:
    """One state: the revisions that mean it, and the layers over its volumes."""

    def __init__(self, position: Position) -> None:
        self.position = position
        self.revisions: set[str] = set()
        self.layers: dict[str, CopyOnWrite] = {}


class Layers:
    """The layers of one server; safe to use from several threads."""

    def __init__(self, directory: Path | None) -> None:
        """What is written goes to files without a name in ``directory``, or where others go."""
        self._directory = directory
        self._states: dict[str, _State] = {}
        """By canonical name."""
        self._meanings: dict[str, _State] = {}
        self._offered: dict[str, Position] = {}
        self._lock = threading.Lock()

    def offer(self, revision: str, position: Position) -> None:
        """Let a revision mean this from now on."""
        self._offered[revision] = position

    def meaning(self, revision: str) -> Position | None:
        """What a revision means already; None if it is to be resolved."""
        with self._lock:
            state = self._meanings.get(revision)
            return self._offered.get(revision) if state is None else state.position

    def open(
        self,
        revision: str,
        position: Position,
        volume: str,
        base: Callable[[], Device],
    ) -> CopyOnWrite:
        """The layer over a volume of a state, made if there is none yet.

        Nobody else opens or leaves the same volume of the same state meanwhile.
        """
        with self._lock:
            state = self._states.setdefault(position.canonical, _State(position))
            state.revisions.add(revision)
            self._meanings.setdefault(revision, state)
            layer = state.layers.get(volume)
        if layer is None:
            try:
                layer = CopyOnWrite(base(), self._directory)
            except BaseException:
                self._forget_unused(position)
                raise
            with self._lock:
                state.layers[volume] = layer
        return layer

    def left(self, position: Position, volume: str) -> None:
        """The last client of a layer has gone."""
        with self._lock:
            state = self._states[position.canonical]
            if not state.layers[volume].written:
                state.layers.pop(volume).close()
        self._forget_unused(position)

    def _forget_unused(self, position: Position) -> None:
        """Forget what the revisions of a state mean once it has no layers."""
        with self._lock:
            state = self._states[position.canonical]
            if not state.layers:
                del self._states[position.canonical]
                for revision in state.revisions:
                    if self._meanings[revision] is state:
                        del self._meanings[revision]

    def close(self) -> None:
        """Throw away all that was written."""
        with self._lock:
            for state in self._states.values():
                for layer in state.layers.values():
                    layer.close()
            self._states.clear()
            self._meanings.clear()
