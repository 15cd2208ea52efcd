"""``blockvault export``: write one volume of a revision to an image file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output, tuning
from blockvault.cli.common import FORMATS, command, with_vault
from blockvault.cli.progress import progress

if TYPE_CHECKING:
    from blockvault.vault import Vault

_STDOUT = "-"


@command(
    "export",
    examples={
        "blockvault export main disk.img": "The only volume of main, raw and sparse.",
        "blockvault export main~1:vda old.qcow2": "One volume, as qcow2.",
        "blockvault export v1.0:vda - | gzip > vda.gz": "To standard output.",
    },
    shape={
        "volume": "name of the volume",
        "size": "its size in bytes",
        "data_bytes": "bytes that are not holes",
        "path": "the file",
    },
)
@click.argument("source", metavar="REV[:VOLUME]", shell_complete=complete.revision_volumes)
@click.argument("file", type=click.Path(allow_dash=True))
@click.option(
    "--format",
    "image_format",
    type=click.Choice(FORMATS),
    help="Format of the file; all but raw are written through qemu-img.  [default: what its "
    "name says, else raw]",
)
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Replace FILE if it exists; the new one has its mode and owner.",
)
@click.option("--sync", is_flag=True, help="Wait until the file is on the disk.")
@with_vault
def run(
    vault: Vault,
    source: str,
    file: str,
    image_format: str | None,
    force: bool,
    sync: bool,
    as_json: bool,
) -> None:
    """Write one volume to an image file.

    The volume may be left out where the revision has only one.  The file appears under its name
    only when it is complete; of a symbolic link, what it points at is replaced.  With - as FILE the
    raw bytes go to standard output.

    An image of another format than raw has whole sectors: of a volume whose size is no multiple of
    512 bytes it is larger by less than that.

    The system brings the file to the disk in its own time, as with cp: after a power cut in the
    seconds that follow, it may be missing or incomplete.  With --sync it is on the disk, name and
    content, when the command ends, which takes longer.

    A block device is overwritten where it is, with --force only, with raw bytes; if that is
    interrupted, the device holds a part of the volume.
    """
    from blockvault.ops.export import export

    tuning.for_a_command()
    revision, volume = vault.split(source)
    target = sys.stdout.buffer if file == _STDOUT else Path(file)
    with progress("Exporting", quiet=as_json) as report:
        done = export(
            vault,
            revision,
            volume,
            target,
            format=image_format,
            force=force,
            sync=sync,
            progress=report,
        )
    if done.path is None:
        return
    if as_json:
        fields = output.pick(done, ("volume", "size", "data_bytes"))
        output.write_json(fields | {"path": str(done.path)})
    else:
        sizes = f"{output.size(done.size)}, {output.size(done.data_bytes)} data"
        output.write(f"Exported {done.volume} to {output.clean(str(done.path))} ({sizes})")
