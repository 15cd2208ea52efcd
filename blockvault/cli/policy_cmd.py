"""``blockvault policy``: what prune keeps when it is not told on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import complete, keeping, output
from blockvault.cli.common import command, with_vault

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "policy",
    examples={
        "blockvault policy": "Show what is kept.",
        "blockvault policy set --keep-daily 7 --keep-weekly 8 --keep-events 48h": (
            "For every branch that has no policy of its own."
        ),
        "blockvault policy set -b test --keep-last 3": "For one branch.",
        "blockvault policy clear -b test": "The branch goes by the vault's policy again.",
    },
    shape={
        "branch": "the branch that the policy is for, null for all that have none",
        **{f"policy.{name}": text for name, text in keeping.SHAPE.items()},
    },
)
@click.argument("action", type=click.Choice(["show", "set", "clear"]), default="show")
@click.option("-b", "--branch", shell_complete=complete.branches, help="For this branch only.")
@keeping.keep_options
@with_vault
def run(
    vault: Vault, /, action: str, branch: str | None, as_json: bool, **keep: Any
) -> None:
    """Show or set what is kept.

    A branch without a policy goes by the vault's; without that, prune forgets nothing of it.
    Nothing is forgotten before prune runs.
    """
    from blockvault.ops import policy as policies

    chosen = keeping.policy_from(keep)
    if (action == "set") != (chosen is not None):
        raise click.UsageError(
            "policy set takes at least one --keep- option"
            if action == "set"
            else f"policy {action} takes no --keep- option"
        )
    if action != "show":
        policies.set_policy(vault, branch, chosen)
    for name, policy in policies.show(vault):
        if action == "show" and branch not in (None, name):
            continue
        if as_json:
            output.write_json({"branch": name, "policy": keeping.json_of(policy)})
        else:
            output.write(f"{name or '(every other branch)'}: {keeping.text_of(policy)}")
