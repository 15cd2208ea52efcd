"""``blockvault vm qmp``: one command to a machine's QEMU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.vm import common

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "qmp",
    examples={
        "blockvault vm qmp web query-status": "Whether it runs.",
        'blockvault vm qmp web set_link \'{"name": "net0", "up": false}\'': "Arguments are a JSON "
        "object; this one pulls its network cable.",
    },
    shape={"return": "what QEMU answered"},
)
@click.argument("branch", shell_complete=complete.branches)
@click.argument("name", metavar="COMMAND")
@click.argument("arguments", required=False)
@with_vault
def run(vault: Vault, branch: str, name: str, arguments: str | None, as_json: bool) -> None:
    """Send one command to a machine's QEMU.

    COMMAND is one of the QEMU machine protocol.  It is not checked: what it does to the machine
    is up to you.
    """
    given = common.parse_arguments(arguments)
    answer = common.machine(vault, branch).ask("vm-qmp", command=name, arguments=given)
    if as_json:
        output.write_json(answer)
    else:
        output.write(output.json_text(answer["return"], sys.stdout, indent=1))
