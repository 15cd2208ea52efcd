"""Names: branches, tags and HEAD, and what a rollback does to a branch.

All of these are a handful of small rows in one transaction, whatever the size of the volumes: a
branch or a rollback names roots that exist, it copies nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from blockvault.errors import Busy, Conflict, NotFound
from blockvault.model import events, projections
from blockvault.model.names import check_new_name, check_ref_name
from blockvault.model.projected import BranchRow
from blockvault.model.refs import HEAD, SHORT_HEAD
from blockvault.ops import recovery, states

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from blockvault.model.snapshot import Volume
    from blockvault.ops.positions import Position
    from blockvault.store.frames import Frame
    from blockvault.store.types import Reader
    from blockvault.transaction import Transaction
    from blockvault.vault import Vault


CURRENT = (HEAD, SHORT_HEAD)
"""How to say which branch is current."""


class Branch(NamedTuple):
    """A branch as it stands; ``seq`` is its last content event, ``tip`` its newest snapshot."""

    id: int
    name: str
    seq: int
    tip: bytes | None
    deleted: bool
    source: int
    source_seq: int
    waypoint_seq: int
    barrier_seq: int


class Tag(NamedTuple):
    """A name for a snapshot, set by event ``seq``."""

    name: str
    snapshot: bytes
    seq: int


class Move(NamedTuple):
    """One place where a branch has been: the waypoint at ``seq``."""

    seq: int
    time_us: int
    kind: str
    snapshot: bytes | None
    tip: bytes | None
    detail: tuple[Any, ...]


_KINDS = {
    events.BRANCH_CREATED: "branch",
    events.IMPORTED: "import",
    events.SNAPSHOTTED: "snapshot",
    events.ROLLED_BACK: "rollback",
    events.VOLUME_CHANGED: "volume",
}
"""Waypoints that people want to see; automatic checkpoints are not among them."""


def beginning(name: str) -> events.BranchCreated:
    """The event of a branch that continues nothing."""
    return events.BranchCreated(name=name, source=0, source_seq=0, snapshot=None, volumes=())


# -- looking ---------------------------------------------------------------------------------


def current(vault: Vault) -> Branch:
    """The branch that HEAD names."""
    with vault.read() as reader:
        head = projections.head(reader)
        if head is None:
            raise NotFound("no branch is current; 'blockvault switch' chooses one", kind="no-head")
        return _branch(head, projections.get_branch(reader, head))


def find(vault: Vault, name: str | None) -> Branch:
    """The branch of this name; the current one for None."""
    if name is None:
        return current(vault)
    with vault.read() as reader:
        return _find(reader, name)


def branch_of(vault: Vault, revision: str) -> str:
    """The bare name of a branch that ``HEAD``, ``@`` or ``heads/NAME`` means; any other text as it
    is."""
    text = revision.strip()
    if text in CURRENT:
        return current(vault).name
    return text.removeprefix("heads/")


def listing(vault: Vault, *, deleted: bool = False) -> list[Branch]:
    """All branches by name, with those that were deleted if asked for."""
    with vault.read() as reader:
        found = [_branch(number, row) for number, row in projections.branches(reader)]
    return sorted((b for b in found if deleted or not b.deleted), key=lambda b: (b.name, b.id))


def tags(vault: Vault) -> list[Tag]:
    """All tags by name."""
    with vault.read() as reader:
        return [Tag(name, row.snapshot, row.seq) for name, row in projections.tags(reader)]


def reflog(vault: Vault, name: str | None) -> list[Move]:
    """Where a branch has been, newest first."""
    branch = find(vault, name)
    with vault.read() as reader:
        return [
            Move(seq, row.time_us, _KINDS[row.code], row.snapshot, row.tip, row.detail)
            for seq, row in projections.waypoints(reader, branch.id)
            if row.code in _KINDS
        ]


def _branch(number: int, row: BranchRow) -> Branch:
    return Branch(
        number,
        row.name,
        row.last_seq,
        row.tip,
        row.deleted,
        row.source,
        row.source_seq,
        row.waypoint_seq,
        row.barrier_seq,
    )


def _find(reader: Reader, name: str) -> Branch:
    check_ref_name(name)  # else it may be no key of a table
    number = projections.branch_named(reader, name)
    if number is None:
        raise NotFound(f"no branch '{name}'", kind="no-branch")
    return _branch(number, projections.get_branch(reader, number))


def leased(reader: Reader, branch: Branch) -> Branch:
    """The branch as it is now that its lease is held; ``Busy`` if its name went to another one."""
    found = _find(reader, branch.name)
    if found.id != branch.id:
        raise Busy(f"branch '{branch.name}' was replaced at this moment; try again")
    return found


@contextmanager
def _alone(vault: Vault, name: str, holder: str, *, successor: bool = False) -> Iterator[Branch]:
    """A branch that nobody writes meanwhile; ``Busy`` names who does."""
    branch = find(vault, name)
    lease = recovery.lease(vault, branch, holder, successor=successor)
    try:
        yield branch
    finally:
        lease.release()


def _refuse_taken(transaction: Transaction, name: str) -> None:
    check_new_name(name)
    if projections.branch_named(transaction.writer, name) is not None:
        raise Conflict(f"branch '{name}' exists already", kind="branch-exists")


# -- changing --------------------------------------------------------------------------------


def create(vault: Vault, name: str, position: Position) -> Branch:
    """A branch that begins at ``position``."""
    check_new_name(name)
    with vault.guard():
        volumes, frames = states.materialized(vault, position)
        _create(vault, name, position, volumes, frames)
    return find(vault, name)


def _create(
    vault: Vault,
    name: str,
    position: Position,
    volumes: tuple[Volume, ...],
    frames: Sequence[Frame],
) -> None:
    with vault.transaction() as transaction:
        _refuse_taken(transaction, name)
        transaction.add_frames(frames)
        transaction.add(
            events.BranchCreated(
                name=name,
                source=position.branch,
                source_seq=position.seq,
                snapshot=position.snapshot,
                volumes=volumes,
            )
        )


def rename(vault: Vault, old: str, new: str) -> None:
    """Give a branch another name, unless it is being written: its server goes by the old one."""
    with _alone(vault, old, "a new name") as branch, vault.transaction() as transaction:
        _refuse_taken(transaction, new)
        renamed = leased(transaction.writer, branch)
        transaction.add(events.BranchRenamed(branch=renamed.id, name=new))


def delete(vault: Vault, name: str) -> None:
    """Take a branch's name away, unless it is current or being written."""
    with _alone(vault, name, "a deletion") as branch, vault.transaction() as transaction:
        leased(transaction.writer, branch)
        if projections.head(transaction.writer) == branch.id:
            raise Conflict(
                f"branch '{name}' is current; switch to another one first",
                kind="branch-current",
            )
        transaction.add(events.BranchDeleted(branch=branch.id))


def restore(vault: Vault, name: str, new: str | None = None) -> Branch:
    """Bring back the branch that was deleted under this name last, with a ``new`` one if given."""
    wanted = name if new is None else new
    with vault.transaction() as transaction:
        _refuse_taken(transaction, wanted)
        writer = transaction.writer
        found = [
            number
            for number, row in projections.branches(writer)
            if row.deleted and row.name == name
        ]
        if not found:
            raise NotFound(f"no deleted branch '{name}'", kind="no-branch")
        last = max(found, key=lambda number: projections.deleted_at(writer, number) or (0, 0))
        transaction.add(events.BranchRestored(branch=last, name=wanted))
    return find(vault, wanted)


def switch(vault: Vault, name: str) -> None:
    """Make a branch current."""
    with vault.transaction() as transaction:
        transaction.add(events.Switched(branch=_find(transaction.writer, name).id))


def tag(vault: Vault, name: str, position: Position, *, force: bool = False) -> Tag:
    """Name a state; one that is no snapshot yet becomes one, beside its branch's line."""
    check_new_name(name)
    with vault.guard():
        oid = position.snapshot or states.freeze(vault, position, f"tag {name}")
        with vault.transaction() as transaction:
            if projections.tag_named(transaction.writer, name) is not None and not force:
                raise Conflict(f"tag '{name}' exists already; --force moves it", kind="tag-exists")
            seq = transaction.add(events.Tagged(name=name, snapshot=oid))
    return Tag(name, oid, seq)


def untag(vault: Vault, name: str) -> None:
    check_ref_name(name)
    with vault.transaction() as transaction:
        if projections.tag_named(transaction.writer, name) is None:
            raise NotFound(f"no tag '{name}'", kind="no-tag")
        transaction.add(events.Untagged(name=name))


def rollback(vault: Vault, name: str, position: Position, *, successor: bool = False) -> int:
    """Give a branch the state of ``position``; return the event after which it had the state that
    it leaves, which stays in its history.

    ``successor`` is what the supervisor of its machine says while that stands.
    """
    with _alone(vault, name, "a rollback", successor=successor) as branch, vault.guard():
        volumes, frames = states.materialized(vault, position)
        with vault.transaction() as transaction:
            transaction.add_frames(frames)
            here = leased(transaction.writer, branch)
            before = here.seq
            if here.barrier_seq < before:
                # A killed session left it between two flushes: else no revision would name it.
                before = transaction.add(events.Barrier(branch=here.id))
            transaction.add(
                events.RolledBack(
                    branch=here.id,
                    volumes=volumes,
                    snapshot=position.snapshot,
                    target_branch=position.branch,
                    target_seq=position.seq,
                )
            )
    return before
