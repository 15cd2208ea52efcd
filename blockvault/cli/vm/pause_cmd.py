"""``blockvault vm pause``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.vm import common

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command("pause", examples={"blockvault vm pause web": "Its guest notices nothing."})
@click.argument("branch", shell_complete=complete.branches)
@with_vault
def run(vault: Vault, branch: str) -> None:
    """Let a machine stand still."""
    common.machine(vault, branch).ask("vm-pause")
    output.write(f"Machine {branch} is paused")
