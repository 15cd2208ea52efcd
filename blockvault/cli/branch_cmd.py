"""``blockvault branch``: list, create, rename, delete or restore branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.ids import short

if TYPE_CHECKING:
    from blockvault.ops.refs import Branch
    from blockvault.vault import Vault


@command(
    "branch",
    examples={
        "blockvault branch": "List branches; * marks the current one.",
        "blockvault branch test main~2": "A clone of an older state; it copies nothing.",
        "blockvault branch -m test staging": "Rename.",
        "blockvault branch -d staging": "Delete; its history is kept until it is pruned.",
        "blockvault branch --restore staging": "Bring it back.",
        "blockvault branch --restore staging old": "The same where the name is in use again.",
    },
    shape={
        "name": "name of the branch",
        "id": "its number: the event that created it",
        "current": "true for the current branch",
        "deleted": "true for a deleted branch (listed with --deleted)",
        "seq": "sequence number of its last event",
        "tip": "id of its newest snapshot, or null",
    },
)
@click.argument("name", required=False, shell_complete=complete.branches)
@click.argument("revision", metavar="[REV]", required=False, shell_complete=complete.revisions)
@click.option("-d", "--delete", "action", flag_value="delete", help="Delete branch NAME.")
@click.option("-m", "--move", "action", flag_value="move", help="Rename: -m OLD NEW, or -m NEW.")
@click.option(
    "--restore",
    "action",
    flag_value="restore",
    help="Bring back a deleted branch: --restore NAME, or NAME NEW.",
)
@click.option("--deleted", is_flag=True, help="List deleted branches too.")
@with_vault
def run(
    vault: Vault,
    name: str | None,
    revision: str | None,
    action: str | None,
    deleted: bool,
    as_json: bool,
) -> None:
    """List, create, rename, delete or restore branches.

    With NAME, make a branch that starts at REV (default: the head of the current branch).  A
    deleted branch is kept, with its history, until it is pruned: --restore brings it back.
    """
    if name is not None and deleted:
        raise click.UsageError("--deleted takes no name")
    if name is None:
        if action:
            raise click.UsageError(f"--{action} needs the name of a branch")
        _list(vault, deleted, as_json)
        return
    gone = None
    if action == "move":
        old, new = (vault.head, name) if revision is None else (name, revision)
        vault.rename_branch(old, new)
        name, said = new, f"Renamed branch {old} to {new}"
    elif action == "delete":
        if revision is not None:
            raise click.UsageError("--delete takes one name")
        gone = vault.branch(name)._replace(deleted=True)
        vault.delete_branch(name)
        said = f"Deleted branch {name}"
    elif action == "restore":
        vault.restore_branch(name, revision)
        said = f"Restored branch {name}" + (f" as {revision}" if revision else "")
        name = revision or name
    else:
        start = "HEAD" if revision is None else revision
        vault.create_branch(name, start)
        said = f"Created branch {name} at {start}"
    if as_json:
        output.write_json(_json(gone or vault.branch(name), vault.head))
    else:
        output.write(said)


def _list(vault: Vault, deleted: bool, as_json: bool) -> None:
    head = vault.head
    listing = vault.branches(deleted=deleted)
    if as_json:
        for branch in listing:
            output.write_json(_json(branch, head))
        return
    rows = []
    for branch in listing:
        current = branch.name == head and not branch.deleted
        mark = "* " if current else "  "
        name = click.style(mark + branch.name, fg="green" if current else None)
        rows.append((name, *_tip(vault, branch)))
    for line in output.columns(rows):
        output.write(line)


def _tip(vault: Vault, branch: Branch) -> tuple[str, str]:
    note = "(deleted) " if branch.deleted else ""
    if branch.tip is None:
        return "-", f"{note}no snapshot yet"
    message = vault.get_snapshot(branch.tip).message
    return click.style(short(branch.tip), fg="yellow"), note + output.subject(message)


def _json(branch: Branch, head: str) -> dict[str, object]:
    return {
        "name": branch.name,
        "id": branch.id,
        "current": branch.name == head and not branch.deleted,
        "deleted": branch.deleted,
        "seq": branch.seq,
        "tip": branch.tip.hex() if branch.tip else None,
    }
