"""``blockvault vm run``: run a machine in the foreground; ``vm start`` does so behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete
from blockvault.cli.common import command, with_vault
from blockvault.cli.vm.life import run_machine

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "run",
    examples={
        "blockvault vm run web": "Until its guest is powered off, or Ctrl-C.",
        "blockvault vm run web --boot": "From its disks, even if it has saved memory.",
    },
)
@click.argument("branch", shell_complete=complete.branches)
@click.option("--boot", is_flag=True, help="Boot from the disks, even if memory was saved.")
@click.option("--paused", is_flag=True, help="Let a resumed machine stand still at first.")
@click.option("--eager", is_flag=True, help="Bring back all memory before the guest goes on.")
@click.option("-f", "--force", is_flag=True, help="Try a state that another QEMU saved.")
@click.option("--throw-away", is_flag=True, help="Delete the branch when the machine ends.")
@with_vault
def run(
    vault: Vault,
    branch: str,
    boot: bool,
    paused: bool,
    eager: bool,
    force: bool,
    throw_away: bool,
) -> None:
    """Run a machine in the foreground.

    If the branch's head is a full snapshot, the machine goes on from it; otherwise it boots from
    its disks.  A machine whose supervisor died is taken over.  SIGTERM and Ctrl-C switch it off as
    a power cut does: what the guest has flushed is safe.  Told again, it ends at once, also
    while it starts, or while the vault's disk does not answer.
    """
    from blockvault.vm.planning import How

    run_machine(vault, branch, How(boot, paused, force, throw_away, eager), lambda told: None)
