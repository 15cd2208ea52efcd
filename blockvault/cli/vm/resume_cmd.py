"""``blockvault vm resume``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.vm import common

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "resume", examples={"blockvault vm resume web": "After a pause, or when a full disk has room."}
)
@click.argument("branch", shell_complete=complete.branches)
@with_vault
def run(vault: Vault, branch: str) -> None:
    """Let a paused machine go on."""
    common.machine(vault, branch).ask("vm-resume")
    output.write(f"Machine {branch} is running")
