"""stats: how much there is, how much of it is shared, and what it takes on disk.

    logical      bytes of all volumes of all states, each counted whole, holes included
    referenced   the same without holes
    unique       bytes of the different blocks among them
    stored       those blocks as they lie in frames;  file_bytes: the vault on disk, free pages too

A *state* is a snapshot or the live head of a branch.  ``own`` of a state is what no other state
holds: what forgetting it alone would free, before compression.  Every tree node is visited at most
twice however many states share it, and a block costs four bytes of memory.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from blockvault.errors import NotFound
from blockvault.ids import ZERO_ID, short
from blockvault.model import projections, tree
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import Progress, positions, refs, silent, snapshots, states
from blockvault.store import tables

if TYPE_CHECKING:
    from blockvault.vault import Vault

_SHARED = -1
_NOBODY = -2


@dataclass(frozen=True, slots=True)
class Usage:
    """One branch or snapshot, in bytes before compression."""

    name: str
    logical: int
    shared: int
    own: int


class Growth(NamedTuple):
    """Bytes of blocks, before compression, that the states of one local day were the first to hold.

    What was forgotten since is not counted; ``day`` is written as 2026-11-24.
    """

    day: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Stats:
    """All in bytes, but for ``ratio`` = referenced / file_bytes, ``dedup`` = referenced / unique
    and ``compression`` = unique / stored.
    """

    logical: int
    referenced: int
    unique: int
    stored: int
    file_bytes: int
    log_bytes: int
    index_bytes: int
    ratio: float
    dedup: float
    compression: float
    growth: list[Growth]
    branches: list[Usage]
    snapshots: list[Usage]


class Freeable(NamedTuple):
    """Stored bytes that a prune by the stored policies and a gc after it would free.

    ``prune`` is what must be forgotten first, 0 without policies; ``gc`` what nothing needs now.
    """

    prune: int
    gc: int


class _State(NamedTuple):
    """``extra`` is False for a branch whose head is a snapshot: it holds nothing of its own."""

    name: str
    is_branch: bool
    extra: bool
    time_us: int
    volumes: tuple[Volume, ...]


def collect(vault: Vault) -> Stats:
    """Walk every state of the vault and measure the store."""
    with vault.guard(reading=True):
        return _collect(vault)


def _collect(vault: Vault) -> Stats:
    nodes = tree.Scratch(vault.objects)
    found = list(_states(vault, nodes))
    owners = _Owners(vault, nodes)
    counts = [
        sum(owners.visit(number if state.extra else _SHARED, volume) for volume in state.volumes)
        for number, state in enumerate(found)
    ]
    own, unique = owners.tally()
    block = vault.options.block_size
    usages = [
        Usage(
            state.name,
            sum(volume.size for volume in state.volumes),
            (counts[number] - own[number]) * block,
            own[number] * block,
        )
        for number, state in enumerate(found)
    ]
    totals = [number for number, state in enumerate(found) if state.extra]
    referenced = sum(counts[number] for number in totals) * block
    with vault.read() as reader:
        sizes = reader.table_bytes()
    file_bytes = sum(path.stat().st_blocks * 512 for path in vault.path.iterdir() if path.is_file())
    return Stats(
        logical=sum(usages[number].logical for number in totals),
        referenced=referenced,
        unique=unique * block,
        stored=sizes[tables.FRAMES],
        dedup=referenced / unique / block if unique else 1.0,
        compression=unique * block / sizes[tables.FRAMES] if unique else 1.0,
        growth=_growth(found, owners.first, block),
        file_bytes=file_bytes,
        log_bytes=sizes[tables.LOG],
        index_bytes=sizes[tables.INDEX],
        ratio=referenced / file_bytes,
        branches=[use for use, state in zip(usages, found, strict=True) if state.is_branch],
        snapshots=[use for use, state in zip(usages, found, strict=True) if not state.is_branch],
    )


def freeable(vault: Vault, *, progress: Progress = silent) -> Freeable:
    """Mark what would stay, as a collection does: it reads every tree node."""
    from blockvault.ops import gc, prune

    return Freeable(*gc.freed_by(vault, prune.plan(vault), progress=progress))


def _states(vault: Vault, nodes: tree.Scratch) -> Iterator[_State]:
    """All snapshots, oldest first, then all branches; trees that heads lack yet go to ``nodes``."""
    with vault.read() as reader:
        ids = [oid for oid, _ in projections.snapshots(reader)]
        now = reader.last().time_us
    for snapshot in sorted(_still_there(vault, ids), key=lambda s: s.time_us):
        oid = snapshot.id
        volumes = snapshot.volumes + snapshot.attachments
        yield _State(short(oid), False, True, snapshot.time_us, volumes)
    for branch in refs.listing(vault):
        position = positions.head_of(vault, branch)
        volumes = states.folded(vault, position, nodes)
        yield _State(branch.name, True, position.snapshot is None, now, volumes)


def _still_there(vault: Vault, ids: Iterable[bytes]) -> Iterator[Snapshot]:
    """Those that no prune has taken since they were listed."""
    for oid in ids:
        with contextlib.suppress(NotFound):
            yield snapshots.load(vault, oid)


def _growth(found: Iterable[_State], first: Counter[int], block: int) -> list[Growth]:
    """Each day on which something new came, oldest first."""
    days: Counter[str] = Counter()
    for number, state in enumerate(found):
        when = datetime.fromtimestamp(state.time_us // 1_000_000, UTC).astimezone()
        days[when.date().isoformat()] += first[number] * block
    return [Growth(day, count) for day, count in sorted(days.items()) if count]


class _Owners:
    """Which state holds each node and block: one, or several."""

    def __init__(self, vault: Vault, nodes: tree.NodeSource) -> None:
        self._vault = vault
        self._source = nodes
        self._owner: dict[bytes, int] = {}
        self._count: dict[bytes, int] = {ZERO_ID: 0}
        self._blocks: dict[int, array[int]] = {}
        self._state = 0
        self.first: Counter[int] = Counter()
        """How many blocks were met first in each state."""

    def visit(self, state: int, volume: Volume) -> int:
        """Count a volume for a state; return how many blocks of it are not zero."""
        blocks = tree.blocks_in(volume.size, self._vault.options.block_size)
        self._state = state
        self._walk(state, [volume.root], tree.depth(blocks))
        return self._count[volume.root]

    def tally(self) -> tuple[Counter[int], int]:
        """Blocks that only one state holds, by state; and how many different blocks there are."""
        own: Counter[int] = Counter()
        for owners in self._blocks.values():
            own.update(owners)
        unique = own.total() - own.pop(_NOBODY, 0)
        own.pop(_SHARED, None)
        return own, unique

    def _walk(self, state: int, ids: Iterable[bytes], height: int) -> None:
        """Mark nodes as the state's, and all below those that another state marked as shared."""
        new: list[bytes] = []
        shared: list[bytes] = []
        for oid in dict.fromkeys(ids):
            owner = self._owner.get(oid)
            if oid == ZERO_ID or owner in (state, _SHARED):
                continue
            self._owner[oid] = state if owner is None else _SHARED
            (new if owner is None else shared).append(oid)
        for owner, batch in ((state, new), (_SHARED, shared)):
            for at in range(0, len(batch), tree.BATCH):
                self._nodes(owner, batch[at : at + tree.BATCH], height)

    def _nodes(self, owner: int, ids: list[bytes], height: int) -> None:
        below = {oid: tree.children(node) for oid, node in tree.fetch(self._source, ids).items()}
        every = chain.from_iterable(below.values())
        if height > 1:
            self._walk(owner, every, height - 1)
            for oid, children in below.items():
                self._count[oid] = sum(map(self._count.__getitem__, children))
            return
        self._mark(owner, {oid for oid in every if oid != ZERO_ID})
        for oid, children in below.items():
            self._count[oid] = tree.FANOUT - children.count(ZERO_ID)

    def _mark(self, owner: int, blocks: set[bytes]) -> None:
        with self._vault.read() as reader:
            places = reader.locate(list(blocks))
        for place in places:
            if place is None:
                continue
            frame, slot = tables.split_location(place)
            owners = self._blocks.setdefault(frame, array("i"))
            if slot >= len(owners):
                owners.extend([_NOBODY] * (slot + 1 - len(owners)))
            self.first[self._state] += owners[slot] == _NOBODY
            owners[slot] = owner if owners[slot] in (_NOBODY, owner) else _SHARED
