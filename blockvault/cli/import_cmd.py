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
        "blockvault import --machine 'VirtualBox VMs/web' -b web": "A machine with all its files.",
        "blockvault import /dev/vg/root --volume vda -m nightly": "A block device, as volume vda.",
    },
    shape=history.SNAPSHOT_SHAPE,
)
@click.argument("images", metavar="[IMAGE...]", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--machine",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Instead of images: the folder of a VirtualBox, VMware, Hyper-V or Xen machine.",
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
    help="Format of the images.  [default: what the extension says; raw without one and for block "
    "devices; never guessed from content]",
)
@click.option("--allow-backing", is_flag=True, help="Read images that refer to a backing file.")
@click.option("-m", "--message", default="", help="What this state is.")
@click.option("--author", help="Who made it.  [default: user@host]")
@with_vault
def run(
    vault: Vault,
    images: tuple[Path, ...],
    folder: Path | None,
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
    through qemu-img.  A file that begins as an image of another format and is named as a raw one,
    as cloud images are that end in .img, is refused until --format says what it is.

    With --machine, the disks of a machine that is switched off become volumes, and its other files
    are kept as they are; 'checkout --machine' gives the folder back.
    """
    if folder is not None:
        if images or volumes or image_format or allow_backing:
            raise BadRequest("--machine takes a whole folder, and neither images nor their options")
        _machine(vault, folder, branch, message, author, as_json)
        return
    if not images:
        raise click.UsageError("Missing argument 'IMAGE...'.")
    from blockvault.ops.ingest import Image, import_images

    if volumes and len(volumes) != len(images):
        raise BadRequest(
            f"{output.plural(len(images), 'image')} but "
            f"{output.plural(len(volumes), 'volume name')}: give --volume once for each image"
        )
    names = volumes or tuple(map(_name, images))
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


def _name(image: Path) -> str:
    """What the volume of an image is called unless told."""
    from blockvault.ops.images import not_an_image

    if image.is_dir():
        # Said here, because the name of a folder such as "." would be refused first.
        raise not_an_image(image)
    return image.stem


def _machine(
    vault: Vault, folder: Path, branch: str | None, message: str, author: str | None, as_json: bool
) -> None:
    from blockvault.vm import folders

    name = branch or vault.head
    with progress("Importing", quiet=as_json) as report:
        found, snapshot = folders.bring_in(
            vault, folder, name, message=message, author=author, progress=report
        )
    if as_json:
        output.write_json(history.snapshot_json(snapshot))
        return
    output.write(history.recorded(name, snapshot))
    files = output.plural(len(found.files), "file")
    output.write(f" a {found.kind} machine: {output.plural(len(found.disks), 'disk')}, {files}")
    for line in changes.since_parent(vault, snapshot, [disk.volume for disk in found.disks]):
        output.write(f" {line}")
