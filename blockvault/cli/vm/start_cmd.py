"""``blockvault vm start``: start a machine in the background."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, open_vault
from blockvault.cli.vm import common
from blockvault.cli.vm.background import Fork
from blockvault.errors import BadRequest

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "start",
    examples={
        "blockvault vm start web": "Go on from its full snapshot, or boot.",
        "blockvault vm start web --boot": "Boot from its disks.",
        "blockvault vm start web~1 --as test": "A clone of an older state, on a new branch.",
        "blockvault vm start 'web@{10 minutes ago}' --throw-away": "Look at a moment of the past.",
    },
    shape=common.STARTED_SHAPE,
)
@click.argument("revision", metavar="REV", shell_complete=complete.revisions)
@click.option("--as", "new", metavar="BRANCH", help="Start it as a new branch of this name.")
@click.option("--throw-away", is_flag=True, help="On a new branch that goes when the machine ends.")
@click.option("--boot", is_flag=True, help="Boot from the disks, even if memory was saved.")
@click.option("--paused", is_flag=True, help="Let a resumed machine stand still at first.")
@click.option("--eager", is_flag=True, help="Bring back all memory before the guest goes on.")
@click.option("-f", "--force", is_flag=True, help="Try a state that another QEMU saved.")
def run(
    revision: str,
    new: str | None,
    throw_away: bool,
    boot: bool,
    paused: bool,
    eager: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Start a machine in the background.

    If the state is a full snapshot, the machine goes on from it; otherwise it boots from its disks.
    A machine whose supervisor died is taken over.  REV is a branch; any other revision needs --as
    or --throw-away, since only a branch can be written.
    """
    with Fork() as fork, open_vault() as vault:
        from blockvault.vm.planning import How, plan

        common.runtime()  # where what QEMU told before is kept
        branch = _branch(vault, revision, new, throw_away)
        made: AbstractContextManager[None] = nullcontext()
        if new is not None or throw_away:
            # What cannot start is told before there is a branch.
            plan(vault, revision, boot=boot, force=force)
            made = common.new_branch(vault, branch, revision)
        with made:
            told = fork.run(vault, branch, How(boot, paused, force, throw_away, eager))
    if as_json:
        output.write_json(told)
    else:
        from blockvault.vm import host

        note = common.accelerator_note(host.accelerator())
        output.write(f"Machine {branch} {told['told']}{note}")


def _branch(vault: Vault, revision: str, new: str | None, throw_away: bool) -> str:
    """The branch that will run."""
    from blockvault.ops.refs import branch_of

    if new is not None:
        return new
    if throw_away:
        import secrets

        return f"throw-away/{secrets.token_hex(4)}"
    name = branch_of(vault, revision)
    if all(each.name != name for each in vault.branches()):
        vault.resolve(revision)
        raise BadRequest(
            f"'{revision}' is no branch: --as NAME starts it as a new one, --throw-away on one "
            "that goes when the machine ends",
            kind="not-a-branch",
        )
    return name
