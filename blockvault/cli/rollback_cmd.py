"""``blockvault rollback``: give a branch the state of any revision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, history, output
from blockvault.cli.common import command, with_vault
from blockvault.ids import short

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "rollback",
    examples={
        "blockvault rollback main main~1": "Back to the snapshot before the newest.",
        "blockvault rollback main 'main@{10 minutes ago}'": "Back to a moment.",
        "blockvault rollback main 'main@{#1234}'": "Undo a rollback: reflog shows the number.",
    },
    shape={
        "branch": "the branch that was rolled back",
        "seq": "the event after which the branch has the new state",
        "snapshot": "id of the snapshot that this state equals, or null",
        "before": "the event after which it had the state that it left: BRANCH@{#before}",
        **history.VOLUME_SHAPE,
    },
)
@click.argument("branch", shell_complete=complete.branches)
@click.argument("revision", metavar="REV", shell_complete=complete.revisions)
@with_vault
def run(vault: Vault, branch: str, revision: str, as_json: bool) -> None:
    """Give a branch the state of any revision.

    History is kept: the state that the branch leaves stays in its reflog, so a rollback can be
    rolled back too.
    """
    from blockvault.ops import positions

    before = vault.rollback(branch, revision)
    position = positions.head_of(vault, vault.branch(branch))
    if as_json:
        output.write_json(
            {
                "branch": branch,
                "seq": position.seq,
                "snapshot": position.snapshot.hex() if position.snapshot else None,
                "before": before,
                "volumes": history.volumes_json(position.volumes),
            }
        )
        return
    what = f" (snapshot {short(position.snapshot)})" if position.snapshot else ""
    output.write(f"{branch} is now at {revision}{what}")
    output.write(f"It was at {branch}@{{#{before}}}")
