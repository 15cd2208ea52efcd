"""``blockvault vm list``: the machines of a vault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import output
from blockvault.cli.common import command, with_vault
from blockvault.cli.vm import common
from blockvault.errors import VaultError

if TYPE_CHECKING:
    from blockvault.vault import Vault

_COLOURS = {"running": "green", "died": "red", "orphaned": "red"}


@command(
    "list",
    examples={"blockvault vm list": "Every branch that has a machine."},
    shape={
        "branch": "the machine's branch",
        "status": "stopped, running, paused, io-error or another state of QEMU's; orphaned: its "
        "guest runs without a supervisor; died: it ended with its supervisor",
        "note": "what is wrong, or how it ended",
        "pid": "process that runs it, or null",
        "qemu": "process of QEMU, or null",
        "accelerator": "kvm or tcg, or null",
    },
)
@with_vault
def run(vault: Vault, as_json: bool) -> None:
    """List machines and whether they run."""
    from blockvault.vm import rundir

    found = [_row(vault, *each) for each in rundir.machines(common.runtime(), vault)]
    if as_json:
        for row in found:
            output.write_json(row)
        return
    rows = [
        (
            output.clean(row["branch"]),
            click.style(row["status"], fg=_COLOURS.get(row["status"])),
            output.clean(row["note"]),
        )
        for row in found
    ]
    for line in output.columns(rows):
        output.write(line)


def _row(vault: Vault, branch: str, state: Any, status: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "branch": branch,
        "status": status,
        "note": state.ended if state is not None else "",
        "pid": None,
        "qemu": None,
        "accelerator": None,
    }
    if status == "orphaned":
        row |= {"qemu": state.qemu.pid, "note": "'blockvault vm start' takes it over"}
    if status == "running":
        from blockvault.nbd import control

        row |= {"pid": state.supervisor.pid}
        try:
            remote = common.machine(vault, branch)
            told = remote.ask("status", patience=control.STATUS_SECONDS)["machine"]
        except VaultError as error:
            return row | {"note": error.message}
        row |= {name: told[name] for name in ("status", "qemu", "accelerator")}
        row |= {"note": told["problem"]}
    return row
