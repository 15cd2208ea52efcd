"""``blockvault import``: store disk images as a new snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockvault.cli import changes, complete, history, output
from blockvault.cli.common import FORMATS, command, with_vault
from blockvault.cli.progress import progress
from blockvault.errors import BadRequest

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "import",
    examples={
        "blockvault import debian.img -m 'fresh install'": "Volume 'debian' on the current branch.",
        "blockvault import root.qcow2 data.raw -b web": "Two volumes, one snapshot, branch web.",
        "blockvault import /dev/vg/root --volume vda -m nightly": "A block device, as volume vda.",
    },
    shape=history.SNAPSHOT_SHAPE,
)
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("-b", "--branch", shell_complete=complete.branches, help="Import into this branch.")
@click.option(
    "--volume",
    "volumes",
    metavar="NAME",
    multiple=True,
    help="Name of the volume, once for each image.  [default: the file's name without extension]",
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(FORMATS),
    help="Format of the images.  [default: by extension, else raw; never guessed from content]",
)
@click.option("--allow-backing", is_flag=True, help="Read images that refer to a backing file.")
@click.option("-m", "--message", default="", help="What this state is.")
@click.option("--author", help="Who made it.  [default: user@host]")
@with_vault
def run(
    vault: Vault,
    images: tuple[Path, ...],
    branch: str | None,
    volumes: tuple[str, ...],
    image_format: str | None,
    allow_backing: bool,
    message: str,
    author: str | None,
    as_json: bool,
) -> None:
    """Store disk images as a new snapshot.

    Each image becomes one volume; several images become several volumes of one snapshot.  Volumes
    of the branch that are not named keep their content.  The branch is made if it does not exist.
    Only blocks that the vault does not hold yet are stored, wherever they were seen before.

    Raw images and block devices are read as they are, holes skipped; other formats are read
    through qemu-img.
    """
    from blockvault.ops.ingest import Image, import_images

    if volumes and len(volumes) != len(images):
        raise BadRequest(
            f"{output.plural(len(images), 'image')} but "
            f"{output.plural(len(volumes), 'volume name')}: give --volume once for each image"
        )
    names = volumes or tuple(image.stem for image in images)
    wanted = [Image(path, name, image_format) for path, name in zip(images, names, strict=True)]
    with progress("Importing", quiet=as_json) as report:
        snapshot = import_images(
            vault,
            wanted,
            branch=branch,
            message=message,
            author=author,
            allow_backing=allow_backing,
            progress=report,
        )
    if as_json:
        output.write_json(history.snapshot_json(snapshot))
        return
    output.write(history.recorded(branch or vault.head, snapshot))
    for line in changes.since_parent(vault, snapshot, names):
        output.write(f" {line}")
