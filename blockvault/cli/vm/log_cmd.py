"""``blockvault vm log``: what a machine wrote to its serial console."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.vm import common
from blockvault.errors import NotFound

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "log",
    examples={
        "blockvault vm log web": "All that is kept: its last megabytes.",
        "blockvault vm log web -n 20": "The last lines.",
    },
)
@click.argument("branch", shell_complete=complete.branches)
@click.option("-n", "--lines", type=click.IntRange(1), help="Only so many last lines.")
@with_vault
def run(vault: Vault, branch: str, lines: int | None) -> None:
    """Print what a machine wrote to its serial console.

    The last 8 MiB are kept, over all of its starts.
    """
    from blockvault.vm import consolelog

    path = common.run_dir(vault, vault.branch(branch)).console_log
    if not path.exists():
        raise NotFound(f"machine '{branch}' was never started", kind="no-log")
    for line in consolelog.lines(path, lines):
        output.write(output.clean(line))
