"""``blockvault vm rollback``: give a machine the state of any revision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.vm import common
from blockvault.errors import NotFound

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "rollback",
    examples={
        "blockvault vm rollback web web~1": "Back to the snapshot before the newest.",
        "blockvault vm rollback web 'web@{5 minutes ago}'": "Its disks as they were; it boots.",
    },
    shape={
        "branch": "the machine's branch",
        "before": "the event after which it had the state that it left: BRANCH@{#before}",
        "told": "how it was started from there; null if it is not running",
    },
)
@click.argument("branch", shell_complete=complete.branches)
@click.argument("revision", metavar="REV", shell_complete=complete.revisions)
@click.option("-f", "--force", is_flag=True, help="Try a state that another QEMU saved.")
@with_vault
def run(vault: Vault, branch: str, revision: str, force: bool, as_json: bool) -> None:
    """Give a machine the state of any revision.

    A running machine goes on from REV's memory, or boots if REV has only disks; the state that it
    leaves is not lost, but its memory is, unless a snapshot has it.  A machine that is not running
    stays so: the next 'vm start' goes on from REV.
    """
    try:
        remote = common.machine(vault, branch)
    except NotFound:
        done: dict[str, Any] = {"before": vault.rollback(branch, revision), "told": None}
    else:
        # Only the machine knows what its guest wrote last; but a time is meant in the zone, and is
        # counted from the moment, in which it is typed.
        asked = vault.resolve(revision).canonical if "@{" in revision else revision
        done = remote.ask("vm-rollback", revision=asked, force=force)
    if as_json:
        output.write_json({"branch": branch, **done})
        return
    told, before = done["told"], done["before"]
    output.write(f"{branch} is now at {revision}" + (f", {told}" if told else ""))
    output.write(f"It was at {branch}@{{#{before}}}")
