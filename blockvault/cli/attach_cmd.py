"""``blockvault attach``: print what to type to use an export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault

if TYPE_CHECKING:
    from blockvault.nbd.offers import Offer
    from blockvault.vault import Vault

PROGRAMS = ("qemu-system", "libvirt", "qemu-nbd", "nbd-client", "nbdfuse", "nbdcopy", "nbdinfo")
CERTIFICATES = "the directory of your ca-cert.pem, client-cert.pem and client-key.pem"


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
        "copy": "whether what is written there is thrown away when the server ends",
        "served": "whether a server that offers it runs now",
        "start": "the command that begins one, else null",
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
    serves the revision now; if none does, with the one that 'blockvault serve' would use, and how
    to start that.  Of a server with --copy-on-write only what its --export names is told, and that
    it is a copy and how to get what is none; with --for on standard error.  For a server with TLS,
    CERTIFICATES stands for the directory of your ca-cert.pem, client-cert.pem and client-key.pem.
    """
    from blockvault.nbd import attach, offers
    from blockvault.ops.refs import branch_of

    text, volume = vault.split(revision)
    found = vault.resolve(text).volume(volume)
    offer = offers.find(vault, branch_of(vault, text), found.name)
    lines = attach.recipes(offer.address, offer.export, read_only=offer.read_only)
    if as_json:
        output.write_json(
            {
                "export": offer.export,
                "read_only": offer.read_only,
                "copy": offer.copy,
                "served": offer.start is None,
                "start": offer.start,
                "recipes": lines,
            }
        )
    elif program:
        if offer.copy:  # beside the line, which is to be pasted as it is
            click.echo(_thrown_away(offer), err=True)
        output.write(lines[program])
    else:
        if offer.start is not None:
            output.write(f"Nothing serves it now; start with: {offer.start}\n")
        if offer.copy:
            output.write(_thrown_away(offer) + "\n")
        if offer.address.tls:
            output.write(f"{attach.CERTIFICATES}: {CERTIFICATES}\n")
        for name in PROGRAMS:
            output.write(click.style(f"{name}:", bold=True))
            output.write(lines[name] + "\n")


def _thrown_away(offer: Offer) -> str:
    """What is to be said of a copy, and how to get what is none."""
    return (
        "What is written there is thrown away when the server ends.\n"
        f"To keep it, attach what this serves: {offer.keep}"
    )
