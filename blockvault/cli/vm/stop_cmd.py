"""``blockvault vm stop``: switch a machine off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import complete, output
from blockvault.cli.common import SECONDS, command, with_vault
from blockvault.cli.vm import common

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "stop",
    examples={
        "blockvault vm stop web": "Press the power button and wait.",
        "blockvault vm stop web --force": "Pull the plug; what the guest has flushed is safe.",
    },
    shape={"branch": "the machine's branch", "ended": "how it ended"},
)
@click.argument("branch", shell_complete=complete.branches)
@click.option("-f", "--force", is_flag=True, help="Switch it off at once.")
@click.option(
    "--timeout", type=SECONDS, default=60.0, show_default=True, metavar="SECONDS",
    help="How long the guest may take to shut down.",
)  # fmt: skip
@with_vault
def run(vault: Vault, branch: str, force: bool, timeout: float, as_json: bool) -> None:
    """Switch a machine off.

    Without --force the guest is asked to shut down, as by its power button.
    """
    from blockvault.vm import rundir

    found = vault.branch(branch)
    run_dir = common.run_dir(vault, found)
    if force and rundir.status(run_dir.load()) in ("orphaned", "died"):
        from blockvault.vm.hold import switch_off

        result: dict[str, Any] = {"ended": switch_off(vault, found, run_dir)}
    else:
        result = common.machine(vault, branch).ask("vm-stop", force=force, seconds=timeout)
    if as_json:
        output.write_json({"branch": branch, **result})
    else:
        output.write(f"Machine {branch} has ended: {output.clean(result['ended'])}")
