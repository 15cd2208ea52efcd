"""``blockvault init``: create a vault."""

from __future__ import annotations

import os
from pathlib import Path

import click

from blockvault.cli import output
from blockvault.cli.common import command, named_directory, size_option


@command(
    "init",
    examples={
        "blockvault init": "Make a vault in the working directory (folder .blockvault).",
        "blockvault init /srv/vms --block-size 16K": "Trade deduplication for a smaller index.",
    },
    shape={
        "path": "the vault's own directory",
        "vault_id": "its random identity, 32 hex digits",
        "block_size": "bytes of a block",
        "compression": "how objects are compressed",
    },
)
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@size_option(
    "--block-size",
    default="4K",
    show_default=True,
    help="Unit of deduplication: 4K, 8K, 16K, 32K or 64K.",
)
@click.option(
    "--compression",
    metavar="NAME",
    default="zstd:3",
    show_default=True,
    help="zstd:1 to zstd:22, or none.",
)
def run(directory: Path | None, block_size: int, compression: str, as_json: bool) -> None:
    """Create an empty vault.

    The vault is the folder .blockvault in DIRECTORY (made if need be; by default where -V says,
    else the working directory), with one empty branch named main.  Block size and compression are
    fixed for its life.
    """
    from blockvault.vault import Vault

    directory = Path(os.path.abspath(directory or named_directory() or "."))
    with Vault.create(directory, block_size=block_size, compression=compression) as vault:
        if not as_json:
            output.write(f"Created an empty vault in {output.clean(str(vault.path))}")
            return
        output.write_json(
            {
                "path": str(vault.path),
                "vault_id": vault.options.vault_id.hex(),
                "block_size": vault.options.block_size,
                "compression": vault.options.compression,
            }
        )
