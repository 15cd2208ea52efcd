"""The volumes of a vault as exports: ``main/vda``, ``main~2/vda``, ``main@{#123456}/vda``.

An export's name is a revision, a slash and a volume.  The server holds the sessions of the branches
that it was told to serve; those are the writable exports.  Every other name is resolved when a
client asks for it, and is read-only: a snapshot, a tag, any moment, the durable head of another
branch.  With copy-on-write those get a layer that takes writes and is gone with the server.

Two names that mean the same state have the same canonical name, so their clients share a device.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence

from blockvault.device import Device
from blockvault.errors import BadRequest, NotFound
from blockvault.nbd.contexts import ChangedRun, Changes
from blockvault.nbd.cow import CopyOnWrite
from blockvault.ops import compare, reading
from blockvault.ops.positions import Position
from blockvault.session import Session
from blockvault.vault import Vault

HEAD = "HEAD"


class HeadVolume:
    """A volume of a branch that this server writes."""

    read_only = False

    def __init__(self, vault: Vault, session: Session, volume: str) -> None:
        self._vault = vault
        self._session = session
        self._volume = volume
        device = session.device(volume)
        self.size, self.block_size = device.size, device.block_size
        self.name = f"{session.branch.name}/{volume}"
        self.description = f"head of branch {session.branch.name}, writable"

    def open(self) -> Device:
        return self._session.device(self._volume)

    def close(self, device: Device) -> None:
        """The session lives as long as the server."""

    def changes(self, revision: str) -> Changes | None:
        """Differences of what is durable: before each answer the session is flushed."""
        other = _other_side(self._vault, revision, self._volume)
        if other is None:
            return None
        differences = _Differences(self._vault, other, self._volume)

        def runs(device: Device, offset: int, length: int) -> Iterable[ChangedRun]:
            self._session.flush()
            head = self._vault.resolve(self._session.branch.name, exact=True)
            return differences.runs(head, offset, length)

        return runs


class PastVolume:
    """A volume as it was at one position of the log."""

    read_only = True

    def __init__(self, vault: Vault, position: Position, volume: str) -> None:
        self._vault = vault
        self._position = position
        self._volume = volume
        self.size = position.volume(volume).size
        self.block_size = vault.options.block_size
        self.name = f"{canonical(position)}/{volume}"
        self.description = f"volume {volume} of {position.text}, read-only"

    def open(self) -> Device:
        return reading.open_device(self._vault, self._position, self._volume)

    def close(self, device: Device) -> None:
        """Past states hold nothing open."""

    def changes(self, revision: str) -> Changes | None:
        other = _other_side(self._vault, revision, self._volume)
        if other is None:
            return None
        differences = _Differences(self._vault, other, self._volume)
        return lambda device, offset, length: differences.runs(self._position, offset, length)


class ThrowAwayVolume(PastVolume):
    """The same with a layer that takes writes; ``layers`` keeps it while the server runs."""

    read_only = False

    def __init__(
        self, vault: Vault, position: Position, volume: str, layers: dict[str, CopyOnWrite]
    ) -> None:
        super().__init__(vault, position, volume)
        self._layers = layers
        self.description = f"volume {volume} of {position.text}, changes are thrown away"

    def open(self) -> Device:
        layer = self._layers.get(self.name)
        if layer is None:
            layer = CopyOnWrite(super().open(), self._vault.path)
            self._layers[self.name] = layer
        return layer

    def changes(self, revision: str) -> Changes | None:
        """A client could take this for the differences of what it has written: there are none."""
        return None


def canonical(position: Position) -> str:
    """A revision that will always mean this very state."""
    if position.snapshot is not None:
        return position.snapshot.hex()
    return f"{position.name or position.text}@{{#{position.seq}}}"


class VaultCatalogue:
    """The exports of one server.

    ``sessions`` are the branches it writes, by name.  ``listed`` are further revisions to offer.
    Unless ``only_listed``, clients may name any other revision as well.  ``exact`` takes moments
    to the very event, though no disk need ever have been in that state.
    """

    def __init__(
        self,
        vault: Vault,
        sessions: Mapping[str, Session],
        listed: Sequence[str] = (),
        *,
        only_listed: bool = False,
        copy_on_write: bool = False,
        exact: bool = False,
    ) -> None:
        self._vault = vault
        self._exact = exact
        self._sessions = dict(sessions)
        self._listed = list(listed)
        self._only_listed = only_listed
        self._copy_on_write = copy_on_write
        self._layers: dict[str, CopyOnWrite] = {}

    def close(self) -> None:
        """Throw away what clients wrote to copies."""
        for layer in self._layers.values():
            layer.close()
        self._layers.clear()

    def names(self) -> list[str]:
        """The names that are offered, writable branches first."""
        return [name for name, _ in self.listing()]

    def listing(self) -> Iterator[tuple[str, str]]:
        """Names as they were given, and what they are."""
        for session in self._sessions.values():
            for name, _, _ in session.volumes:
                head = HeadVolume(self._vault, session, name)
                yield head.name, head.description
        for revision in self._listed:
            position = self._vault.resolve(revision, exact=self._exact)
            for name, _, _ in position.volumes:
                yield f"{revision}/{name}", self._past(position, name).description

    def find(self, name: str) -> HeadVolume | PastVolume:
        """The volume of an export's name; the empty name is the only one that is listed."""
        revision, slash, volume = (name or self._default()).rpartition("/")
        if not slash:
            raise NotFound(f"'{name}' is no export: it has the form REVISION/VOLUME")
        if revision == HEAD and self._vault.head in self._sessions:
            revision = self._vault.head
        session = self._sessions.get(revision)
        if session is not None:
            session.device(volume)  # says what volumes there are if there is no such
            return HeadVolume(self._vault, session, volume)
        if self._only_listed and revision not in self._listed:
            raise NotFound(f"'{name}' is not offered by this server")
        return self._past(self._vault.resolve(revision, exact=self._exact), volume)

    def _past(self, position: Position, volume: str) -> PastVolume:
        if self._copy_on_write:
            return ThrowAwayVolume(self._vault, position, volume, self._layers)
        return PastVolume(self._vault, position, volume)

    def _default(self) -> str:
        names = self.names()
        if len(names) != 1:
            raise NotFound(f"there are {len(names)} exports and none is the default")
        return names[0]


# -- differences -----------------------------------------------------------------------------------


def _other_side(vault: Vault, revision: str, volume: str) -> Position | None:
    """``REV`` or ``REV:VOLUME`` as a position with that one volume, named as ours is."""
    try:
        text, other = vault.split(revision)
        position = vault.resolve(text)
        chosen = position.volume(other or volume)
    except (BadRequest, NotFound):
        return None
    return position._replace(volumes=(chosen._replace(name=volume),))


class _Differences:
    """Runs of one volume that differ from ``other``, kept until another state is asked about."""

    def __init__(self, vault: Vault, other: Position, volume: str) -> None:
        self._vault = vault
        self._other = other
        self._volume = volume
        self._lock = threading.Lock()
        self._known: tuple[int, list[int], list[int]] | None = None

    def runs(self, position: Position, offset: int, length: int) -> Iterator[ChangedRun]:
        """(offset, length, differs) from ``offset`` on, one after the other."""
        starts, stops = self._differing(position)
        at, stop = offset, offset + length
        place = max(bisect_right(starts, offset) - 1, 0)
        while at < stop:
            while place < len(starts) and stops[place] <= at:
                place += 1
            if place == len(starts) or starts[place] >= stop:
                yield at, stop - at, False
                return
            if starts[place] > at:
                yield at, starts[place] - at, False
            yield starts[place], stops[place] - starts[place], True
            at = stops[place]

    def _differing(self, position: Position) -> tuple[list[int], list[int]]:
        with self._lock:
            if self._known is None or self._known[0] != position.seq:
                ours = position._replace(volumes=(position.volume(self._volume),))
                (found,) = compare.diff(self._vault, ours, self._other)
                starts = [start for start, _ in found.extents]
                stops = [start + size for start, size in found.extents]
                self._known = (position.seq, starts, stops)
            return self._known[1], self._known[2]
