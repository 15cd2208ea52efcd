"""``blockvault snapshot`` (and ``commit``): record the head of a branch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockvault.cli import changes, complete, history, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.progress import progress
from blockvault.errors import Busy

if TYPE_CHECKING:
    from blockvault.model.snapshot import Snapshot
    from blockvault.vault import Vault


@command(
    "snapshot",
    examples={
        "blockvault snapshot -m 'before the upgrade'": "Record the head of the current branch.",
        "blockvault commit -m done -b test": "Record the head of branch test; commit is an alias.",
        "blockvault snapshot --from work -m edited": "Take back what changed in a checkout.",
    },
    shape=history.SNAPSHOT_SHAPE,
)
@click.option("-m", "--message", default="", help="What this state is.")
@click.option(
    "-b",
    "--branch",
    shell_complete=complete.branches,
    help="Record this branch.  [default: the current one; with --from, the one checked out]",
)
@click.option("--author", help="Who made it.  [default: user@host]")
@click.option(
    "--from",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="First take in the files of DIR, a directory that checkout made.",
)
@click.option(
    "-f", "--force", is_flag=True, help="With --from, prefer files to what the branch has by now."
)
@with_vault
def run(
    vault: Vault,
    message: str,
    branch: str | None,
    author: str | None,
    directory: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Record the head of a branch as a new snapshot.

    A snapshot is an immutable version of all volumes of the branch.  It copies nothing and takes
    the same short time whatever their size.

    With --from, the volumes changed in a checkout directory become the new state first.  They go
    to the branch that was checked out, which keeps what it has of all others; -b names another
    one, and has to where no branch was checked out but a tag, a snapshot or a moment.  A branch
    that -b names anew gets all the files.  A file that was made longer or shorter (truncate -s)
    makes its volume so.

    The memory of a machine and the state of its devices belong to its volumes as they were: beside
    changed ones they stay only if they were changed as well.  All other files stay, such as a
    machine's configuration.

    A volume that was changed in DIR and on the branch as well is a conflict, and nothing is
    recorded: -b with a new name keeps the files as a branch of their own, and --force puts the
    file of DIR in the volume's place.
    """
    if force and directory is None:
        raise click.UsageError("--force goes with --from")
    if directory is None:
        snapshot = _recorded(vault, message, branch, author)
    else:
        from blockvault.ops.checkin import snapshot_from

        with progress("Reading", quiet=as_json) as report:
            snapshot = snapshot_from(
                vault,
                directory,
                branch=branch,
                message=message,
                author=author,
                force=force,
                progress=report,
            )
    if as_json:
        output.write_json(history.snapshot_json(snapshot))
        return
    output.write(history.recorded(_branch(vault, snapshot), snapshot))
    if directory is not None:
        for line in changes.since_parent(vault, snapshot, {v.name for v in snapshot.volumes}):
            output.write(f" {line}")


def _branch(vault: Vault, snapshot: Snapshot) -> str:
    return vault.resolve(snapshot.id.hex()).name or ""


def _recorded(vault: Vault, message: str, branch: str | None, author: str | None) -> Snapshot:
    """A branch that is being served is written by the server: then that takes the snapshot."""
    try:
        return vault.snapshot(message, branch=branch, author=author)
    except Busy:
        from blockvault.nbd import control  # sockets and logging, for this case alone

        made = control.snapshot(vault, message, branch=branch, author=author)
        return vault.get_snapshot(made)
