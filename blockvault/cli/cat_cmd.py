"""``blockvault cat``: write a volume's bytes to standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete
from blockvault.cli.common import command, size_option, with_vault

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "cat",
    examples={
        "blockvault cat main:vda | sha256sum": "The whole volume.",
        "blockvault cat main~1:vda --offset 1M --length 4K | xxd": "One block of the past.",
    },
)
@click.argument("source", metavar="REV[:VOLUME]", shell_complete=complete.revision_volumes)
@size_option("--offset", default="0", show_default=True, help="Start here.")
@size_option("--length", help="Stop after so many bytes.  [default: to the end]")
@with_vault
def run(vault: Vault, source: str, offset: int, length: int | None) -> None:
    """Write a volume's bytes to standard output.

    Holes come out as zeros.
    """
    from blockvault.ops.export import cat

    revision, volume = vault.split(source)
    cat(vault, revision, volume, sys.stdout.buffer, offset=offset, length=length)
