"""``blockvault events``: list the write-level log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import click

from blockvault.cli import complete, output
from blockvault.cli.common import COUNT, command, with_vault
from blockvault.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from blockvault.ops.snapshots import Logged
    from blockvault.vault import Vault

_POLL = 0.2  # seconds between two looks at the log with --follow


@command(
    "events",
    examples={
        "blockvault events": "Everything that happened, oldest first.",
        "blockvault events main -n 20": "The last 20 events of branch main.",
        "blockvault events main~1 --since main~2": "What led from one snapshot to the next.",
        "blockvault events --since '10 minutes ago' --follow": "And go on as new ones come.",
    },
    shape={
        "seq": "its sequence number: BRANCH@{#seq} is the state just after it",
        "time": "when it happened, UTC",
        "branch": "name of the branch it belongs to, or null",
        "kind": "what it is: wrote, zeroed, trimmed, barrier, snapshotted, ...",
        "event": "its fields, as docs/format.md describes them for each kind; ids in hex",
    },
)
@click.argument("revision", metavar="[REV]", required=False, shell_complete=complete.revisions)
@click.option("--since", metavar="REV|TIME", help="Only what came after this state or moment.")
@click.option("--until", metavar="REV|TIME", help="Only up to this state or moment.")
@click.option("-n", "--max-count", "count", metavar="N", type=COUNT, help="The last N.")
@click.option(
    "-f", "--follow", is_flag=True, help="Wait for new events and list them as they come."
)
@with_vault
def run(
    vault: Vault,
    revision: str | None,
    since: str | None,
    until: str | None,
    count: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """List the write-level log.

    Oldest first: every write, trim and flush of every disk, and all that was done to branches and
    tags, each with its number, time and branch.  With REV, only what happened to its branch until
    then.
    """
    branch, limits = _limits(vault, revision, since, until)
    if follow and limits.bounded:
        raise click.UsageError("--follow has no end: it takes neither --until nor a past REV")
    write = _Writer(vault, as_json)
    with vault.read() as reader:
        newest = reader.last().seq  # what is there by now and not asked for is not told later
    for logged in _chosen(vault, branch, limits, count):
        write(logged)
        newest = max(newest, logged.seq)
    if follow:
        _follow(vault, branch, newest, write)


class Limits(NamedTuple):
    """The first and last sequence number and moment; None: no limit.

    Numbers do not ascend with time: each server stores the writes of its guests when it comes to.
    """

    first: int
    last: int | None
    not_before_us: int
    not_after_us: int | None

    @property
    def bounded(self) -> bool:
        return self.last is not None

    def include(self, logged: Logged) -> bool:
        """Whether an event of these numbers happened within these moments."""
        until = self.not_after_us
        return self.not_before_us <= logged.time_us and (until is None or logged.time_us <= until)


def _limits(
    vault: Vault, revision: str | None, since: str | None, until: str | None
) -> tuple[int | None, Limits]:
    """The branch by number, if only one is asked for, and what of the log is."""
    from blockvault.ops.refs import branch_of

    branch, last = None, None
    if revision is not None:
        position = vault.resolve(revision, exact=True)
        branch = position.branch or None
        if branch_of(vault, revision) != position.name:
            last = position.seq
    after, start_us = _bound(vault, since)
    before, end_us = _bound(vault, until)
    if end_us is not None:
        before = vault.last_event_until(end_us)
    if before is not None:
        last = before if last is None else min(last, before)
    first = (after or 0) + 1 if start_us is None else vault.first_event_since(start_us)
    return branch, Limits(first, last, start_us or 0, end_us)


def _bound(vault: Vault, text: str | None) -> tuple[int | None, int | None]:
    """A limit as ``(seq, None)`` if it is a revision, as ``(None, time)`` if it is a moment."""
    if text is None:
        return None, None
    try:
        return vault.resolve(text, exact=True).seq, None
    except (BadRequest, NotFound) as error:
        from blockvault.model.events import now_us
        from blockvault.model.times import parse_time

        try:
            return None, parse_time(text, now_us())
        except BadRequest:
            raise error from None


def _chosen(
    vault: Vault, branch: int | None, limits: Limits, count: int | None
) -> Iterator[Logged]:
    """The events within the limits, oldest first; with ``count`` the last so many."""
    from blockvault.ops.snapshots import events_of

    last_ones = count is not None
    every = events_of(vault, branch, since=limits.first, until=limits.last, reverse=last_ones)
    wanted = filter(limits.include, every)
    return reversed(list(islice(wanted, count))) if last_ones else wanted


def _follow(vault: Vault, branch: int | None, last: int, write: _Writer) -> None:
    """Look for later events again and again, until interrupted."""
    from blockvault.ops.snapshots import events_of

    while True:
        for logged in events_of(vault, branch, since=last + 1):
            write(logged)
            last = logged.seq
        output.flush()
        time.sleep(_POLL)


class _Writer:
    """Prints events; looks branch names up again when one may have come or changed since."""

    def __init__(self, vault: Vault, as_json: bool) -> None:
        from blockvault.cli import describe

        self._describe = describe
        self._vault = vault
        self._as_json = as_json
        self._read_names()

    def _read_names(self) -> None:
        with self._vault.read() as reader:
            self._known = reader.last().seq
        self._names = self._describe.branch_names(self._vault)

    def __call__(self, logged: Logged) -> None:
        describe = self._describe
        event = logged.event
        if logged.seq > self._known and describe.kind(event).startswith("branch-"):
            self._read_names()
        branch = describe.branch_of(event, logged.seq, self._names)
        if self._as_json:
            output.write_json(
                {
                    "seq": logged.seq,
                    "time": output.utc_time(logged.time_us),
                    "branch": branch,
                    "kind": describe.kind(event),
                    "event": describe.fields_json(event),
                }
            )
            return
        number = click.style(f"#{logged.seq}", fg="yellow")
        parts = (number, output.precise_time(logged.time_us), branch or "-", describe.kind(event))
        output.write(" ".join([*parts, describe.detail(event, self._names)]).rstrip())
