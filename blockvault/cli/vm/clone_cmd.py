"""``blockvault vm clone``: a second machine from a running one."""

from __future__ import annotations

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, open_vault
from blockvault.cli.vm import common
from blockvault.cli.vm.background import Fork
from blockvault.errors import Conflict


@command(
    "clone",
    examples={"blockvault vm clone web test": "Both go on, each with its own memory and disks."},
    shape={
        **common.STARTED_SHAPE,
        "snapshot": "id of the snapshot that both go on from",
        "shared[]": "what the clone has in common with its source and may have to change",
    },
)
@click.argument("source", metavar="BRANCH", shell_complete=complete.branches)
@click.argument("new", metavar="NEW")
@click.option("--paused", is_flag=True, help="Let the clone stand still at first.")
def run(source: str, new: str, paused: bool, as_json: bool) -> None:
    """Start a second machine from a running one.

    The source is recorded in full while it goes on, and the clone is a new branch that starts from
    there.  It copies nothing.  The clone gets a new VM generation id, so that a kernel that knows
    of those reseeds its random numbers; what else the two share is said.
    """
    with Fork() as fork, open_vault() as vault:
        from blockvault.model.names import check_new_name
        from blockvault.vm.planning import How, plan

        if any(each.name == new for each in vault.branches()):
            raise Conflict(f"branch '{new}' exists already", kind="branch-exists")
        check_new_name(new)  # before the source is recorded
        remote = common.machine(vault, source)
        snapshot = remote.ask("vm-snapshot", message=f"cloned as {new}", author=None)["id"]
        with common.new_branch(vault, new, snapshot):
            machine = plan(vault, vault.branch(new)).machine
            told = fork.run(vault, new, How(paused=paused))
    shared = [f"MAC address {machine.mac}"] if machine.mac else []
    shared += ["host names, SSH host keys and machine ids on its disks"]
    if as_json:
        output.write_json({**told, "snapshot": snapshot, "shared": shared})
        return
    output.write(f"Machine {new} {told['told']}")
    output.write(f"It shares with {source}: {'; '.join(shared)}")
