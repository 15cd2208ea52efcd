"""``blockvault vm snapshot``: record all that a running machine is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import complete, history, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.vm import common

if TYPE_CHECKING:
    from blockvault.vault import Vault

COST_SHAPE = {
    "pause": "seconds for which the guest stood still; null without memory",
    "held": "seconds for which its writes to disk waited, with the pause; null without memory",
    "used": "bytes of guest memory that hold data; null without memory",
}


@command(
    "snapshot",
    examples={
        "blockvault vm snapshot web -m 'before the upgrade'": "Everything, all of one instant.",
        "blockvault vm snapshot web --disk-only": "Its disks, as after a power cut.",
        "blockvault vm snapshot web --quiesce": "Its disks, file systems frozen by its agent.",
    },
    shape={**history.SNAPSHOT_SHAPE, **COST_SHAPE},
)
@click.argument("branch", shell_complete=complete.branches)
@click.option("-m", "--message", default="", help="What this state is.")
@click.option("--author", help="Who made it.  [default: user@host]")
@click.option("--disk-only", is_flag=True, help="Only the disks, as after a power cut.")
@click.option(
    "--quiesce", is_flag=True, help="Only the disks, file systems frozen by the guest's agent."
)
@with_vault
def run(
    vault: Vault,
    branch: str,
    message: str,
    author: str | None,
    disk_only: bool,
    quiesce: bool,
    as_json: bool,
) -> None:
    """Record a running machine: disks, memory, processors, configuration.

    The machine goes on meanwhile, but for a blink in which the state of its devices and the last
    changes of its memory are taken.  If anything fails it goes on too, and nothing is recorded.
    """
    remote = common.machine(vault, branch)
    words: dict[str, Any] = {"message": message, "author": author}
    if disk_only or quiesce:
        made = remote.ask("snapshot", quiesce=quiesce, **words)
    else:
        made = remote.ask("vm-snapshot", **words)
    snapshot = vault.get_snapshot(bytes.fromhex(made["id"]))
    if as_json:
        cost = {name: made.get(name) for name in COST_SHAPE}
        output.write_json(history.snapshot_json(snapshot) | cost)
        return
    output.write(history.recorded(branch, snapshot))
    if "pause" in made:
        output.write(
            f" {output.size(made['used'])} of memory; the guest stood for "
            f"{made['pause'] * 1000:.0f} ms"
        )
