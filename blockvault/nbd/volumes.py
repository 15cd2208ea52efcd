"""The volumes of a vault as exports: ``main/vda``, ``main~2/vda``, ``main@{#123456}/vda``.

An export's name is a revision, a slash and a volume.  The server holds the sessions of the branches
that it was told to serve; those are the writable exports.  Every other name is resolved when a
client asks for it, and is read-only: a snapshot, a tag, any moment, the durable head of another
branch.  With copy-on-write those get a layer that takes writes and is gone with the server.

Two names that mean the same state have the same canonical name, so their clients share a device.
But most names move: ``main~1`` is another state after the next snapshot.  So only a name that is
``settled`` lets a client divide its work among several connections.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from blockvault.device import Device
from blockvault.errors import BadRequest, NotFound
from blockvault.ids import MIN_PREFIX_HEX
from blockvault.nbd.contexts import ChangedRun, Changes
from blockvault.nbd.layers import Layers
from blockvault.ops import compare, positions, reading
from blockvault.ops.positions import Position
from blockvault.ops.refs import CURRENT, branch_of
from blockvault.session import Session
from blockvault.vault import Vault

log = logging.getLogger(__name__)


class HeadVolume:
    """A volume of a branch that this server writes."""

    read_only = False
    settled = True

    def __init__(self, vault: Vault, session: Session, volume: str, against: Against) -> None:
        self._vault = vault
        self._session = session
        self._volume = volume
        self._against = against
        device = session.device(volume)
        self.size, self.block_size = device.size, device.block_size
        self.name = f"{session.branch.name}/{volume}"
        self.description = f"head of branch {session.branch.name}, writable"

    def open(self) -> Device:
        return self._session.device(self._volume)

    def join(self) -> None:
        """There is one head."""

    def close(self, device: Device) -> None:
        """The session lives as long as the server."""

    def changes(self, revision: str) -> Changes | None:
        """Differences of what is durable: before each answer the session is flushed."""
        differences = self._against(revision, self._volume)
        if differences is None:
            return None

        def runs(device: Device, offset: int, length: int) -> Iterable[ChangedRun]:
            self._session.flush()
            head = positions.head_of(self._vault, self._vault.branch(self._session.branch.name))
            return differences.runs(head, offset, length)

        return runs


class PastVolume:
    """A volume as it was at one position of the log, which ``revision`` was resolved to."""

    read_only = True

    def __init__(
        self, vault: Vault, revision: str, position: Position, volume: str, against: Against
    ) -> None:
        self._vault = vault
        self._position = position
        self._volume = volume
        self._against = against
        self.settled = _is_settled(revision, position)
        self.size = position.volume(volume).size
        self.block_size = vault.options.block_size
        self.name = f"{position.canonical}/{volume}"
        self.description = f"volume {volume} of {position.text}, read-only"

    def open(self) -> Device:
        return reading.open_device(self._vault, self._position, self._volume)

    def join(self) -> None:
        """A name that moves may mean another state for who asks next."""

    def close(self, device: Device) -> None:
        """Past states hold nothing open."""

    def changes(self, revision: str) -> Changes | None:
        differences = self._against(revision, self._volume)
        if differences is None:
            return None
        return lambda device, offset, length: differences.runs(self._position, offset, length)


class ThrowAwayVolume(PastVolume):
    """The same with a layer that takes writes; ``layers`` keeps it, and what its name means."""

    read_only = False

    def __init__(
        self, vault: Vault, revision: str, position: Position, volume: str, layers: Layers
    ) -> None:
        super().__init__(vault, revision, position, volume, _nothing)
        self._revision = revision
        self._layers = layers
        self.settled = True
        self.description = f"volume {volume} of {position.text}, changes are thrown away"

    def open(self) -> Device:
        return self._layers.open(self._revision, self._position, self._volume, super().open)

    def join(self) -> None:
        self._layers.join(self._revision, self._position)

    def close(self, device: Device) -> None:
        self._layers.left(self._position, self._volume)


def _nothing(revision: str, volume: str) -> None:
    """A client could take differences for those of what it has written to a copy: it has none."""


def _is_settled(revision: str, position: Position) -> bool:
    """Whether a revision will mean this position for whoever asks next, too."""
    if position.snapshot is None:
        return revision == position.canonical
    digits = len(revision) >= MIN_PREFIX_HEX and revision != position.name
    return digits and position.canonical.startswith(revision.lower())


class VaultCatalogue:
    """The exports of one server.

    ``sessions`` are the branches it writes, by name.  ``listed`` are further revisions to offer.
    Unless ``only_listed``, clients may name any other revision as well, also to compare with.
    ``exact`` takes moments to the very event, though no disk need ever have been in that state.
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
        # Beside the vault's data, not in /tmp: a disk may be larger than the memory.
        beside = None if vault.store.readonly else vault.path
        self._layers = Layers(beside) if copy_on_write else None
        if self._layers is not None:
            self._listed = [*dict.fromkeys(self._offer(self._layers, each) for each in listed)]

    def _offer(self, layers: Layers, revision: str) -> str:
        """Offer copies of what a revision means now, and say by which name: HEAD goes elsewhere."""
        position = self._position(revision)
        name = branch_of(self._vault, revision)
        same = {revision, name, *(CURRENT if revision in CURRENT else ())}
        if name in {branch.name for branch in self._vault.branches()}:
            same.add(f"heads/{name}")
        layers.offer(same, position, partial(reading.open_device, self._vault, position))
        return name

    def close(self) -> None:
        """Throw away what clients wrote to copies."""
        if self._layers is not None:
            self._layers.close()

    def names(self) -> list[str]:
        """The names that are offered, writable branches first."""
        return [name for name, _ in self.listing()]

    def listing(self) -> Iterator[tuple[str, str]]:
        """Names, and what they are; a revision that was pruned or lost its name since is passed
        over."""
        for session in self._sessions.values():
            for name, _, _ in session.volumes:
                head = self._head(session, name)
                yield head.name, head.description
        for revision in self._listed:
            try:
                position = self._position(revision)
            except NotFound as error:
                log.warning("not offered any more: %s", error)
                continue
            for name, _, _ in position.volumes:
                yield f"{revision}/{name}", self._past(revision, position, name).description

    def find(self, name: str) -> HeadVolume | PastVolume:
        """The volume of an export's name; the empty name is the only one that is listed."""
        revision, slash, volume = (name or self._default()).rpartition("/")
        if not slash:
            raise NotFound(f"'{name}' is no export: it has the form REVISION/VOLUME")
        session = self._sessions.get(branch_of(self._vault, revision))
        if session is not None:
            session.device(volume)  # says what volumes there are if there is no such
            return self._head(session, volume)
        if not self._offers(revision):
            raise NotFound(f"'{name}' is not offered by this server")
        return self._past(revision, self._position(revision), volume)

    def _offers(self, revision: str) -> bool:
        if not self._only_listed or revision in self._listed or self._meaning(revision):
            return True
        return branch_of(self._vault, revision) in self._sessions

    def _position(self, revision: str) -> Position:
        return self._meaning(revision) or self._vault.resolve(revision, exact=self._exact)

    def _meaning(self, revision: str) -> Position | None:
        """What a revision means where there are copies of it; None if it is to be resolved."""
        if self._layers is None:
            return None
        known = self._layers.meaning(revision)
        if known is None and revision in CURRENT:
            known = self._layers.meaning(branch_of(self._vault, revision))
        return known

    def _head(self, session: Session, volume: str) -> HeadVolume:
        return HeadVolume(self._vault, session, volume, self._differences)

    def _past(self, revision: str, position: Position, volume: str) -> PastVolume:
        if self._layers is not None:
            return ThrowAwayVolume(self._vault, revision, position, volume, self._layers)
        return PastVolume(self._vault, revision, position, volume, self._differences)

    def _differences(self, revision: str, volume: str) -> _Differences | None:
        """How a volume differs from ``REV`` or ``REV:VOLUME``; None if there is no such here."""
        try:
            text, other = self._vault.split(revision)
            if not self._offers(text):
                return None
            position = self._vault.resolve(text, exact=self._exact)
            chosen = position.volume(other or volume)
        except (BadRequest, NotFound):
            return None
        return _Differences(self._vault, volume, position, chosen.name)

    def _default(self) -> str:
        names = self.names()
        if len(names) != 1:
            raise NotFound(f"there are {len(names)} exports and none is the default")
        return names[0]


# -- differences -----------------------------------------------------------------------------------


class _Differences:
    """Runs of one volume that differ from another, kept until another state is asked about."""

    def __init__(self, vault: Vault, volume: str, position: Position, other: str) -> None:
        self._vault = vault
        self._volume = volume
        self._against = position, other
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
                found = compare.diff_volumes(self._vault, position, self._volume, *self._against)
                starts = [start for start, _ in found.extents]
                stops = [start + size for start, size in found.extents]
                self._known = (position.seq, starts, stops)
            return self._known[1], self._known[2]


Against = Callable[[str, str], _Differences | None]
"""``VaultCatalogue._differences``."""
