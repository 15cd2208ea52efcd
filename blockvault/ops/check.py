"""verify: is everything there, and is it what was written?

    structure    LMDB's pages: reachable once, in order, and accounted for (walked without LMDB)
    log          records decode, continue each other, and hold known events
    projections  equal to what replaying the log yields
    trees        every root that any event or snapshot names: its nodes and blocks are indexed
    objects      every frame decodes, every object hashes to the id that the index has for it

``fast`` leaves out the last step, the only one that reads all the data.  Each step goes on after
what it finds, in short transactions, so that one run tells everything and stops nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockvault.errors import Damaged
from blockvault.ids import short
from blockvault.model import events, projections, tree
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import Progress, base, damage, rebuild, roots, silent, states
from blockvault.ops.check_frames import FrameCheck, Scan
from blockvault.ops.check_trees import Trees
from blockvault.ops.needed import Needed
from blockvault.ops.report import Problem, Report, hidden
from blockvault.store import tables

if TYPE_CHECKING:
    from blockvault.ops.positions import Position
    from blockvault.vault import Vault

WHOLE = Scan()
_OF_OBJECTS = frozenset({"object-missing", "object-damaged", "bad-encoding"})


def verify(
    vault: Vault,
    rev: str | None = None,
    *,
    fast: bool = False,
    since: str | None = None,
    scan: Scan = WHOLE,
    progress: Progress | None = None,
) -> Report:
    """Check the whole vault, or with ``rev`` only what that state needs.

    ``since`` checks only what came after that revision; ``scan`` says how the frames are read.  For
    each object that is lost the report tells what it touches.
    """
    report = Report()
    with vault.guard():
        if rev is not None:
            _verify_state(vault, vault.resolve(rev), report, fast)
        elif since is not None:
            _verify_since(vault, vault.resolve(since, exact=True).seq, report)
        else:
            _verify_all(vault, report, fast, scan, progress or silent)
        if any(problem.kind in _OF_OBJECTS for problem in report.problems):
            try:
                report.touched = damage.touched(vault, report.lost)
            except Damaged as error:
                report.found(error)
    return report


def _verify_all(vault: Vault, report: Report, fast: bool, scan: Scan, progress: Progress) -> None:
    structure = vault.store.structure()
    report.problems += [Problem("structure-damaged", message) for message in structure]
    if not rebuild.only_disorder(structure):
        # LMDB believes its file: reading on could end the process, or never end.
        return
    kept = _Roots(vault, report)
    for look in (_verify_rows, _verify_projections, lambda *_: kept.collect()):
        try:
            look(vault, report)
        except Damaged as error:
            report.found(error)
    trees = Trees(vault, report, kept.needed)
    for volume in kept.volumes:
        trees.check(volume)
    _report_missing(kept.needed, report)
    if not fast:
        FrameCheck(vault, report, scan).check(progress)


def _verify_since(vault: Vault, seq: int, report: Report) -> None:
    """Every object that waypoints, snapshots and writes after an event added, read and hashed."""
    trees = Trees(vault, report, Needed(vault))
    with vault.read() as reader:
        branches = [number for number, _ in projections.branches(reader)]
    old, new = _Roots(vault, report), _Roots(vault, report)
    for number in branches:
        for at, waypoint in roots.branch_waypoints(vault, number):
            (new if at > seq else old).volumes.update(waypoint.volumes)
    for oid in roots.snapshot_ids(vault):
        with vault.read() as reader:
            recorded = projections.recorded(reader, oid)
        if recorded is not None:
            (new if recorded.seq > seq else old).snapshot(oid)
    trees.know(old.volumes)
    for volume in sorted(new.volumes):
        trees.read(volume)
    for record in base.records(vault, seq + 1):
        report.events += record.count
        written = {
            oid
            for at, row in enumerate(base.rows_of(record), record.first_seq)
            if row[0] == events.WROTE and at > seq
            for oid in tree.split_ids(row[6])
        }
        trees.read_blocks(sorted(written), "a write in the log")


class _Roots:
    """What the vault keeps: tree roots and snapshots by the tables, single writes by the log."""

    def __init__(self, vault: Vault, report: Report) -> None:
        self.vault = vault
        self.report = report
        self.volumes: set[Volume] = set()
        self.needed = Needed(vault)

    def collect(self) -> None:
        """Read the whole log and all that the tables name; ``Damaged`` where the log ends early."""
        with self.vault.read() as reader:
            branches = [number for number, _ in projections.branches(reader)]
            found = [(number, projections.cut(reader, number)) for number in branches]
        for number in branches:
            for _, waypoint in roots.branch_waypoints(self.vault, number):
                self.volumes.update(waypoint.volumes)
        for oid in roots.snapshot_ids(self.vault):
            self.snapshot(oid)
        self._log({number: cut.seq if cut else 0 for number, cut in found})

    def _log(self, cuts: dict[int, int]) -> None:
        """Every record continues the one before it, and every write that is kept has its blocks."""
        account = base.newest_account(self.vault)
        for record in base.records(self.vault):
            self.report.events += record.count
            with self.vault.read() as reader:
                stands = reader.stands(tables.LOG, record.first_seq)
            # A prune may come meanwhile, and a collection take what that one needs no more.
            if not stands:
                account = base.newest_account(self.vault)
                if account is None or account.needs(record):
                    self.report.problems.append(hidden(f"record of event {record.first_seq}"))
            if record.pruned and (account is None or not account.accounts_for(record)):
                account = base.newest_account(self.vault)
            if record.pruned and (account is None or not account.accounts_for(record)):
                raise Damaged(
                    f"the log has a gap at event {record.first_seq} that no prune accounts for",
                    kind="broken-chain",
                )
            for seq, row in enumerate(base.rows_of(record), record.first_seq):
                if row[0] == events.WROTE and seq >= cuts.get(row[2], record.last_seq + 1):
                    self.needed.add(tree.split_ids(row[6]))

    def snapshot(self, oid: bytes) -> None:
        """Take what a snapshot names; the report is told if it cannot be read."""
        try:
            snapshot = Snapshot.decode(self.vault.objects.get(oid))
        except Damaged as error:
            self.report.problems.append(Problem(error.reason, error.message, oid))
            return
        self.volumes.update(snapshot.volumes, snapshot.attachments)


def _report_missing(needed: Needed, report: Report) -> None:
    for oid in needed.missing():
        report.problems.append(Problem("object-missing", f"block {short(oid)} is missing", oid))


def _verify_rows(vault: Vault, report: Report) -> None:
    """The tables that do not follow from the log."""
    for table in (tables.META, *rebuild.HELPERS):
        for key in rebuild.spoilt_rows(vault, table):
            message = f"row {key.hex()} of table '{table}' is not what was written"
            report.problems.append(Problem("row-damaged", message))


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
    """One state with the files kept with it: trees, blocks, and unless ``fast`` their bytes."""
    needed = Needed(vault)
    trees = Trees(vault, report, needed)
    for volume in (*position.volumes, *position.attachments):
        (trees.check if fast else trees.read)(volume)
    for name, overlay in states.overlays(vault, position).items():
        if fast:
            needed.add(overlay.blocks.values())
        else:
            trees.read_blocks(overlay.blocks.values(), f"volume '{name}'")
    _report_missing(needed, report)
