"""``blockvault attach``: print what to type to use an export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault

if TYPE_CHECKING:
    from blockvault.vault import Vault

PROGRAMS = ("qemu-system", "libvirt", "qemu-nbd", "nbd-client", "nbdfuse", "nbdcopy", "nbdinfo")


@command(
    "attach",
    examples={
        "blockvault attach": "Every way to use the current branch's volume.",
        "blockvault attach main~2:vda --for qemu-system": "Only the arguments for QEMU.",
        "blockvault attach v1.0 --for uri": "Only the URI, for any NBD client.",
    },
    shape={
        "export": "name of the export: REVISION/VOLUME",
        "read_only": "whether it cannot be written to",
        "served": "whether a server that has it runs now",
        "recipes.uri": "NBD URI of it",
        "recipes.qemu-system": "arguments for qemu-system-x86_64",
        "recipes.libvirt": "the <disk> element of a domain",
        "recipes.qemu-nbd": "the command for a kernel device through qemu-nbd",
        "recipes.nbd-client": "the command for a kernel device through nbd-client",
        "recipes.nbdfuse": "the command for a file that is the volume",
        "recipes.nbdcopy": "the command that copies the volume",
        "recipes.nbdinfo": "the command that describes it",
    },
)
@click.argument(
    "revision", metavar="[REV[:VOLUME]]", default="HEAD", shell_complete=complete.revision_volumes
)
@click.option(
    "--for",
    "program",
    type=click.Choice(["uri", *PROGRAMS]),
    help="Print only what this one takes.",
)
@with_vault
def run(vault: Vault, revision: str, program: str | None, as_json: bool) -> None:
    """Print what to type to use an export.

    For each program the exact line (for libvirt the XML), with the address of the server that
    serves the revision now; if none does, with the one that 'blockvault serve' would use.
    """
    from blockvault.nbd.attach import recipes

    text, volume = vault.split(revision)
    text = vault.head if text == "HEAD" else text
    export = f"{text}/{vault.resolve(text).volume(volume).name}"
    server = _server(vault, text)
    address, read_only = _address(vault, server, text)
    lines = recipes(address, export, read_only=read_only)
    if as_json:
        output.write_json(
            {
                "export": export,
                "read_only": read_only,
                "served": server is not None,
                "recipes": lines,
            }
        )
    elif program:
        output.write(lines[program])
    else:
        if server is None:
            output.write("Nothing serves it now; start with: blockvault serve\n")
        for name in PROGRAMS:
            output.write(click.style(f"{name}:", bold=True))
            output.write(lines[name] + "\n")


def _server(vault: Vault, revision: str) -> dict[str, Any] | None:
    """The status of a server to ask: one that writes the branch, else any."""
    from blockvault.nbd import control

    found = [status for _, status in control.statuses(vault.path) if status is not None]
    found.sort(key=lambda status: revision not in status["branches"])
    return next((status for status in found if status["addresses"]), None)


def _address(vault: Vault, server: dict[str, Any] | None, revision: str) -> tuple[Any, bool]:
    from blockvault.nbd.attach import Address
    from blockvault.nbd.serving import default_socket

    if server is None:
        branches = {branch.name for branch in vault.branches()}
        return Address(path=default_socket(vault.path)), revision not in branches
    writable = revision in server["branches"] or server["copy_on_write"]
    return Address.parse(server["addresses"][0], tls=server["tls"]), not writable
