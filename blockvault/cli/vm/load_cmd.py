"""``blockvault vm load``: give a QEMU that somebody else started a recorded state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.vm import common

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "load",
    examples={"blockvault vm load --qmp /run/web.qmp web~0": "It goes on from there."},
    shape={"revision": "the state that was given", "status": "running or paused"},
)
@click.argument("revision", metavar="REV", shell_complete=complete.revisions)
@common.qmp_option()
@click.option("--paused", is_flag=True, help="Let the machine stand still at first.")
@with_vault
def run(vault: Vault, revision: str, qmp: Path, paused: bool, as_json: bool) -> None:
    """Give a QEMU that somebody else started the state that 'vm attach' recorded.

    Start it as the recorded one was ('blockvault checkout REV DIR' writes qemu-command.json), with
    its disks at REV and with -incoming defer.  Disks at REV are a branch that was made there and is
    served, or images that were exported from there.
    """
    from blockvault.vm import handover
    from blockvault.vm.foreign import Foreign

    with Foreign(qmp) as machine:
        handover.give(vault, revision, machine, paused=paused)
        status = machine.monitor.status()
    if as_json:
        output.write_json({"revision": revision, "status": status})
    else:
        output.write(f"QEMU has the state of {revision} and is {status}")
