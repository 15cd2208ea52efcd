"""``blockvault switch``: make another branch the current one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "switch",
    examples={
        "blockvault switch test": "Commands without a branch now mean test.",
        "blockvault switch -c test main~2": "Make the branch first.",
    },
)
@click.argument("branch", shell_complete=complete.branches)
@click.argument("revision", metavar="[REV]", required=False, shell_complete=complete.revisions)
@click.option("-c", "--create", is_flag=True, help="Make the branch, at REV or HEAD, first.")
@with_vault
def run(vault: Vault, branch: str, revision: str | None, create: bool) -> None:
    """Make another branch the current one.

    HEAD then means this branch, and commands use it unless told otherwise.  No file and no running
    machine is touched.
    """
    if revision is not None and not create:
        raise click.UsageError("REV is only used with --create")
    if create:
        vault.create_branch(branch, "HEAD" if revision is None else revision)
    vault.switch(branch)
    output.write(f"Switched to {'new ' if create else ''}branch {branch}")
