"""``blockvault policy``: what prune keeps, and gc packs, when not told on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import complete, keeping, output
from blockvault.cli.common import command, with_vault

if TYPE_CHECKING:
    from blockvault.vault import Vault

_COLD = 30 * 86400 * 1_000_000


@command(
    "policy",
    examples={
        "blockvault policy": "Show what is kept.",
        "blockvault policy set --keep-daily 7 --keep-weekly 8 --keep-events 48h": (
            "For every branch that has no policy of its own."
        ),
        "blockvault policy set -b test --keep-last 3": "For one branch.",
        "blockvault policy clear -b test": "The branch goes by the vault's policy again.",
        "blockvault policy set --recompress 19 --untouched 30d": (
            "Every gc packs what is a month old at level 19; --recompress 0 ends that."
        ),
    },
    shape={
        "branch": "the branch that the policy is for, null for all that have none",
        **{f"policy.{name}": text for name, text in keeping.SHAPE.items()},
    },
)
@click.argument("action", type=click.Choice(["show", "set", "clear"]), default="show")
@click.option("-b", "--branch", shell_complete=complete.branches, help="For this branch only.")
@keeping.keep_options
@click.option(
    "--recompress",
    "level",
    metavar="LEVEL",
    type=click.IntRange(0, 22),
    help="Have every gc pack cold frames together at this zstd level; 0: no more.",
)
@click.option(
    "--untouched",
    metavar="TIME",
    type=keeping.parse_time_span,
    help="How old a frame is when it counts as cold.  [default: 30d]",
)
@with_vault
def run(
    vault: Vault,
    /,
    action: str,
    branch: str | None,
    level: int | None,
    untouched: int | None,
    as_json: bool,
    **keep: Any,
) -> None:
    """Show or set what is kept, and how gc packs what is cold.

    A branch without a policy goes by the vault's; without that, prune forgets nothing of it.
    Nothing is forgotten before prune runs, nothing is packed before gc does.  How gc packs is one
    more line of JSON with a field "packing": level, untouched (seconds).
    """
    from blockvault.ops import policy as policies

    chosen = keeping.policy_from(keep)
    _check(action, branch, chosen, level, untouched)
    if chosen is not None or action == "clear":
        policies.set_policy(vault, branch, chosen)
    if level is not None:
        span = _COLD if untouched is None else untouched
        policies.set_packing(vault, policies.Packing(level, span) if level else None)
    _show(vault, branch if action == "show" else None, as_json)


def _check(
    action: str, branch: str | None, chosen: object, level: int | None, untouched: int | None
) -> None:
    """Whether the options make sense together; ``UsageError`` if not."""
    if action == "set" and chosen is None and level is None:
        raise click.UsageError("policy set takes at least one --keep- option, or --recompress")
    if action != "set" and (chosen, level, untouched) != (None, None, None):
        raise click.UsageError(f"policy {action} takes no such option")
    if level is None and untouched is not None:
        raise click.UsageError("--untouched goes with --recompress")
    if level is not None and branch is not None:
        raise click.UsageError("branches share their frames: --recompress is for the whole vault")


def _show(vault: Vault, branch: str | None, as_json: bool) -> None:
    """All policies, or that of one branch."""
    from blockvault.model.retention import format_duration
    from blockvault.ops import policy as policies

    if branch is not None:
        vault.branch(branch)  # says that there is none of this name
    for name, policy in policies.show(vault):
        if branch not in (None, name):
            continue
        if as_json:
            output.write_json({"branch": name, "policy": keeping.json_of(policy)})
        else:
            output.write(f"{name or '(every other branch)'}: {keeping.text_of(policy)}")
    packing = policies.packing(vault) if branch is None else None
    if packing is not None and as_json:
        found = {"level": packing.level, "untouched": packing.untouched_us // 1_000_000}
        output.write_json({"packing": found})
    elif packing is not None:
        cold = format_duration(packing.untouched_us)
        output.write(f"(cold frames): --recompress {packing.level} --untouched {cold}")
