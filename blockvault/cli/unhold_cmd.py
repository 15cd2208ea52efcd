"""``blockvault unhold``: let the policies decide on a state again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.ids import short

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command("unhold", examples={"blockvault unhold main~2": "The snapshot may be pruned again."})
@click.argument("revision", metavar="REV", shell_complete=complete.revisions)
@with_vault
def run(vault: Vault, revision: str) -> None:
    """Unhold a revision: let the policies decide on it again."""
    from blockvault.ops import policy

    output.write(f"Released {short(policy.unhold(vault, revision))}")
