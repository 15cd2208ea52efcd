"""Snapshots and the log: making versions, reading them, listing what led to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from blockvault.errors import Conflict, Damaged, NotFound
from blockvault.ids import short
from blockvault.model import events, history, projections
from blockvault.model.checks import check_text
from blockvault.model.rows import Row, from_row, unpack_rows
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import refs

if TYPE_CHECKING:
    from blockvault.ops.positions import Position
    from blockvault.store.frames import Frame
    from blockvault.store.types import Reader
    from blockvault.vault import Vault


class Logged(NamedTuple):
    """One event where it stands in the log."""

    seq: int
    time_us: int
    event: events.Event


class NewBranch(NamedTuple):
    """A branch that begins with the snapshot that is being recorded."""

    name: str


def check_words(message: str, author: str | None) -> None:
    """``BadRequest`` if no snapshot can hold them: asked first where what is recorded takes long.

    What a shell hands over may be in another encoding than UTF-8.
    """
    check_text(message, "the message")
    if author is not None:
        check_text(author, "the author")


def record(
    vault: Vault,
    branch: int | NewBranch,
    volumes: Sequence[Volume],
    event: Callable[[int, bytes], events.Event],
    *,
    message: str = "",
    author: str | None = None,
    attachments: Sequence[Volume] = (),
    frames: Sequence[Frame] = (),
    runs: Mapping[bytes, bytes] | None = None,
) -> Snapshot:
    """Store a snapshot of ``volumes`` with ``event(branch, snapshot id)`` in one transaction."""
    with vault.guard(), vault.transaction() as transaction:
        objects = vault.new_objects()
        if isinstance(branch, NewBranch):
            if projections.branch_named(transaction.writer, branch.name) is not None:
                raise Conflict(f"branch '{branch.name}' exists by now", kind="branch-exists")
            parents: tuple[bytes, ...] = ()
            seq = branch_id = transaction.add(refs.beginning(branch.name))
        else:
            row = projections.get_branch(transaction.writer, branch)
            parents, seq, branch_id = (row.tip,) if row.tip else (), row.last_seq, branch
        made = Snapshot(
            parents=parents,
            volumes=tuple(sorted(volumes)),
            attachments=tuple(sorted(attachments)),
            message=message,
            author=vault.author if author is None else author,
            time_us=transaction.time_us,
            seq=seq,
        )
        objects.add_node(made.encode())
        transaction.add_frames([*frames, *objects.finish()])
        transaction.add_runs(runs or {})
        transaction.add(event(branch_id, made.id))
    return made


def load(vault: Vault, oid: bytes) -> Snapshot:
    """The snapshot with this id; ``NotFound`` if the vault has none.

    Parents that were pruned give way to the nearest ones that were kept, as git's grafts do; the
    id remains that of what was recorded.
    """
    with vault.read() as reader:
        if projections.recorded(reader, oid) is None:
            kind = "pruned" if projections.graft(reader, oid) else "no-revision"
            was = "was pruned" if kind == "pruned" else "does not exist"
            raise NotFound(f"snapshot {short(oid)} {was}", kind=kind)
    found = Snapshot.decode(vault.objects.get(oid))
    with vault.read() as reader:
        return found.grafted(kept_parents(reader, found.parents))


def kept_parents(reader: Reader, parents: Sequence[bytes]) -> tuple[bytes, ...]:
    """Pruned parents replaced by their nearest kept ancestors."""
    found: dict[bytes, None] = {}
    for parent in parents:
        if projections.recorded(reader, parent) is not None:
            found[parent] = None
        elif (graft := projections.graft(reader, parent)) is not None:
            # A prune makes all grafts anew, of what it keeps: none leads to another.
            found.update(dict.fromkeys(graft.parents))
    return tuple(found)


def log(vault: Vault, *positions: Position) -> Iterator[Snapshot]:
    """The snapshots that positions stand on, newest first, each once."""
    tips = [position.tip for position in positions if position.tip is not None]
    return history.walk(lambda oid: load(vault, oid), tips)


def events_of(
    vault: Vault,
    branch: int | None,
    *,
    since: int | None = None,
    until: int | None = None,
    reverse: bool = False,
) -> Iterator[Logged]:
    """Events with ``since`` <= seq <= ``until``, of one branch or of the whole vault.

    Records are read one at a time, each in a transaction of its own: however long the log and
    however slow the caller, no snapshot of the store is held.
    """
    low, at = max(1, since or 1), max(1, since or 1)
    with vault.read() as reader:
        last = reader.last().seq
    high = last if until is None else min(until, last)
    if reverse:
        at = high
    while low <= at <= high:
        with vault.read() as reader:
            record_ = reader.record(at)
        if record_ is None:
            raise Damaged(f"the log has no record of event {at}", kind="broken-chain")
        rows = [] if record_.pruned else unpack_rows(record_.payload)
        numbered = list(enumerate(rows, record_.first_seq))
        for seq, row in reversed(numbered) if reverse else numbered:
            if low <= seq <= high and (branch is None or _concerns(row, seq, branch)):
                delta, event = from_row(row)
                yield Logged(seq, record_.time_us + delta, event)
        at = record_.first_seq - 1 if reverse else record_.last_seq + 1


def first_since(vault: Vault, time_us: int) -> int:
    """A number from which on all events lie that happened at a moment or later.

    Records ascend by their first events, but those of two branches may overlap.  So of each branch
    the last record that began before the moment may reach beyond it.  All are found by halves, in a
    few look-ups of each branch however long the log is, and are read until one does.
    """
    with vault.read() as reader:
        first = reader.record_at(time_us)
        numbers = [number for number, _ in projections.branches(reader)]
        before = [projections.trail_at_time(reader, number, time_us - 1) for number in numbers]
        starts = sorted({found[0] for found in before if found is not None and found[0] < first})
        return next((start for start in starts if _end_of(reader, start) >= time_us), first)


def last_until(vault: Vault, time_us: int) -> int:
    """A number up to which all events lie that happened at a moment or earlier."""
    with vault.read() as reader:
        return reader.record_at(time_us + 1) - 1


def _end_of(reader: Reader, first_seq: int) -> int:
    """The time of the last event of a record."""
    record_ = reader.record(first_seq)
    if record_ is None or record_.pruned:
        return 0
    return record_.time_us + int(unpack_rows(record_.payload)[-1][1])


def _concerns(row: Row, seq: int, branch: int) -> bool:
    """Whether an event moves the branch, renames it or makes it current."""
    if row[0] == events.BRANCH_CREATED:
        return seq == branch
    return row[0] not in _VAULT_WIDE and bool(row[2] == branch)


_VAULT_WIDE = frozenset(
    {events.INIT, events.TAGGED, events.UNTAGGED, events.HELD, events.UNHELD, events.PRUNED}
)
