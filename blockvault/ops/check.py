"""verify: is everything there, and is it what was written?

    log          records decode, continue each other, and hold known events
    projections  equal to what replaying the log yields
    trees        every root that any event or snapshot names: its nodes and blocks are indexed
    objects      every frame decodes, every object hashes to the id that the index has for it

``fast`` leaves out the last step, the only one that reads all the data.  Each step goes on after
what it finds, in short transactions, so that one run tells everything and stops nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from blockvault.device import Extent
from blockvault.errors import Damaged
from blockvault.ids import ZERO_ID, object_id, short
from blockvault.model import events, projections, tree
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import Progress, base, mark, reading, rebuild, silent
from blockvault.ops.reading import StateDevice
from blockvault.store import frames, tables

if TYPE_CHECKING:
    from blockvault.ops.resolve import Position
    from blockvault.vault import Vault

_FRAMES_A_BATCH = 64
_ENTRIES_A_PAGE = 10_000
_BLOCKS_A_LOOKUP = 4096


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; ``kind`` is stable, ``message`` is for people."""

    kind: str
    message: str


@dataclass(slots=True)
class Report:
    """What was looked at and what was found."""

    events: int = 0
    objects: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def found(self, error: Damaged) -> None:
        self.problems.append(Problem(error.reason, error.message))


def verify(
    vault: Vault, rev: str | None = None, *, fast: bool = False, progress: Progress | None = None
) -> Report:
    """Check the whole vault, or with ``rev`` only what that state needs."""
    report = Report()
    with vault.guard():
        if rev is not None:
            _verify_state(vault, vault.resolve(rev), report, fast)
        else:
            _verify_all(vault, report, fast, progress or silent)
    return report


def _verify_all(vault: Vault, report: Report, fast: bool, progress: Progress) -> None:
    roots = _Roots(vault, report)
    try:
        roots.collect()
        _verify_projections(vault, report)
    except Damaged as error:
        report.found(error)
    trees = _Trees(vault, report)
    for volume in roots.volumes:
        trees.check(volume)
    if not fast:
        _Frames(vault, report).check(progress)


class _Roots:
    """What the vault keeps: tree roots and snapshots by the tables, single writes by the log."""

    def __init__(self, vault: Vault, report: Report) -> None:
        self.vault = vault
        self.report = report
        self.volumes: set[Volume] = set()

    def collect(self) -> None:
        """Read the whole log and all that the tables name; ``Damaged`` where the log ends early."""
        with self.vault.read() as reader:
            branches = [number for number, _ in projections.branches(reader)]
            found = [(number, projections.cut(reader, number)) for number in branches]
        for number in branches:
            for _, waypoint in mark.branch_waypoints(self.vault, number):
                self.volumes.update(waypoint.volumes)
        for oid in mark.snapshot_ids(self.vault):
            self._snapshot(oid)
        self._log({number: cut.seq if cut else 0 for number, cut in found})

    def _log(self, cuts: dict[int, int]) -> None:
        """Every record continues the one before it, and every write that is kept has its blocks."""
        latest = base.find(self.vault)
        for record in base.records(self.vault):
            self.report.events += record.count
            if record.pruned and (latest is None or not latest.accounts_for(record)):
                raise Damaged(
                    f"the log has a gap at event {record.first_seq} that no prune accounts for",
                    kind="broken-chain",
                )
            written: set[bytes] = set()
            for seq, row in enumerate(base.rows_of(record), record.first_seq):
                if row[0] == events.WROTE and seq >= cuts.get(row[2], record.last_seq + 1):
                    written.update(tree.split_ids(row[6]))
            _check_stored(self.vault, written, self.report, "a write in the log")

    def _snapshot(self, oid: bytes) -> None:
        try:
            snapshot = Snapshot.decode(self.vault.objects.get(oid))
        except Damaged as error:
            self.report.found(error)
            return
        self.volumes.update(snapshot.volumes, snapshot.attachments)


class _Trees:
    """Walks trees, every node once however many states share it."""

    def __init__(self, vault: Vault, report: Report) -> None:
        self.vault = vault
        self.report = report
        self._seen: set[bytes] = set()

    def check(self, volume: Volume) -> None:
        """Every node is there and is what its id says; every block is indexed."""
        height = tree.depth(tree.blocks_in(volume.size, self.vault.options.block_size))
        ids: set[bytes] = set()
        try:
            walk = tree.reachable(self.vault.objects, [(volume.root, height)], self._seen)
            for level, _, node in walk:
                if level == 1:
                    ids.update(tree.children(node))
                if len(ids) >= _BLOCKS_A_LOOKUP:
                    self._blocks(ids, volume)
        except Damaged as error:
            self.report.found(error)
        self._blocks(ids, volume)

    def _blocks(self, ids: set[bytes], volume: Volume) -> None:
        _check_stored(self.vault, ids, self.report, f"volume '{volume.name}'")
        ids.clear()


def _check_stored(vault: Vault, ids: set[bytes], report: Report, where: str) -> None:
    wanted = ids - {ZERO_ID}
    if not wanted:
        return
    with vault.read() as reader:
        missing = wanted - reader.indexed(list(wanted))
    for oid in sorted(missing):
        report.problems.append(
            Problem("object-missing", f"block {short(oid)} of {where} is missing")
        )


def _verify_projections(vault: Vault, report: Report) -> None:
    for table, key, _ in rebuild.differences(vault)[0]:
        report.problems.append(
            Problem(
                "projection-differs",
                f"row {key.hex()} of table '{table}' is not what the log says; "
                "'blockvault rebuild' mends that",
            )
        )


def _verify_state(vault: Vault, position: Position, report: Report, fast: bool) -> None:
    """The trees of one state, and unless ``fast`` the bytes of all its blocks."""
    trees = _Trees(vault, report)
    for volume in position.volumes:
        trees.check(volume)
        if fast:
            continue
        device = reading.open_device(vault, position, volume.name)
        for extent in device.extents(0, device.size):
            if not extent.zero:
                _read(device, extent, report)


def _read(device: StateDevice, extent: Extent, report: Report) -> None:
    """Read an extent; where that fails, block by block, so that each bad one is named."""
    step = 4 << 20
    for at in range(extent.offset, extent.offset + extent.length, step):
        length = min(step, extent.offset + extent.length - at)
        try:
            device.read(at, length)
        except Damaged:
            for block in range(at, at + length, device.block_size):
                try:
                    device.read(block, min(device.block_size, at + length - block))
                except Damaged as error:
                    where = f"volume '{device.name}' at {block}: {error.message}"
                    report.problems.append(Problem(error.reason, where))
        report.objects += tree.blocks_in(length, device.block_size)
        report.bytes += length


class _Frames:
    """Every frame decoded and every object hashed, held against the index.

    A frame does not name its objects, so one that fails is a *suspect* by place; a last scan of
    the index tells whose place that was.  Objects that the index has elsewhere are no suspects.
    """

    def __init__(self, vault: Vault, report: Report) -> None:
        self.vault = vault
        self.report = report
        self._matched = 0
        self._suspects: set[int] = set()
        self._broken: dict[int, str] = {}

    def check(self, progress: Progress) -> None:
        start, done = 0, 0
        total = _frame_bytes(self.vault)
        with ThreadPoolExecutor(2, "decode") as pool:
            while batch := self._fetch(start):
                decoded = pool.map(_decoded, [data for _, data in batch])
                for (number, data), objects in zip(batch, decoded, strict=True):
                    self._frame(number, objects)
                    done += len(data)
                    progress(min(done, total), total)
                start = batch[-1][0] + 1
        self._name_suspects()

    def _fetch(self, start: int) -> list[tuple[int, bytes]]:
        with self.vault.read() as reader:
            return list(islice(reader.frames(start), _FRAMES_A_BATCH))

    def _frame(self, number: int, objects: list[bytes] | str) -> None:
        if isinstance(objects, str):
            self._broken[number] = objects
            return
        ids = [object_id(data) for data in objects]
        self.report.objects += len(ids)
        self.report.bytes += sum(map(len, objects))
        with self.vault.read() as reader:
            places = reader.locate(ids)
        for slot, place in enumerate(places):
            if place == tables.location(number, slot):
                self._matched += 1
            elif place is None:
                self._suspects.add(tables.location(number, slot))

    def _name_suspects(self) -> None:
        """Blame the index entries that point at something that is not what they say."""
        named = 0
        for oid, place in self._entries():
            number, _ = tables.split_location(place)
            if number in self._broken:
                self._blame(oid, f"in frame {number}: {self._broken[number]}")
            elif place in self._suspects:
                self._blame(oid, f"in frame {number}: its bytes are not what was stored")
            else:
                named += 1
        if named != self._matched:
            self.report.problems.append(
                Problem(
                    "index-differs",
                    f"{abs(named - self._matched)} entries of the object index point at no such "
                    "object; 'blockvault rebuild' mends that",
                )
            )

    def _blame(self, oid: bytes, why: str) -> None:
        self.report.problems.append(Problem("object-damaged", f"object {short(oid)} {why}"))

    def _entries(self) -> Iterator[tuple[bytes, int]]:
        """All of the index, read a page at a time."""
        start = b""
        while True:
            with self.vault.read() as reader:
                page = list(islice(reader.scan(tables.INDEX, start), _ENTRIES_A_PAGE))
            for oid, value in page:
                yield oid, int.from_bytes(value)
            if not page:
                return
            start = page[-1][0] + b"\0"


def _frame_bytes(vault: Vault) -> int:
    """About how many bytes all frames have: what the data file holds."""
    return (vault.path / "data.mdb").stat().st_size


def _decoded(data: bytes) -> list[bytes] | str:
    """The objects of a frame, or what is wrong with it."""
    try:
        return list(frames.decode(data))
    except Damaged as error:
        return error.message
