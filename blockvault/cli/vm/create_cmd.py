"""``blockvault vm create``: configure the machine of a branch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, history, output
from blockvault.cli.common import FORMATS, command, parse_size, size_option, with_vault
from blockvault.cli.vm.common import runtime
from blockvault.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from blockvault.ops.compose import Source
    from blockvault.vault import Vault

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@command(
    "create",
    examples={
        "blockvault vm create web --memory 512M --disk vda=main:vda": "From a volume of main.",
        "blockvault vm create new --disk vda=10G --disk cd=debian.iso": "An empty disk, an image.",
        "blockvault vm create web --disk vda=qcow2:noble.img": "An image that is no raw one.",
        "blockvault vm create main --memory 1G --cpus 2": "All volumes of main are its disks.",
    },
    shape=history.SNAPSHOT_SHAPE,
)
@click.argument("branch", shell_complete=complete.branches)
@size_option("--memory", default="512M", show_default=True, help="Memory of the machine.")
@click.option("--cpus", default=1, show_default=True, help="Processors of the machine.")
@click.option(
    "--disk", "disks", metavar="NAME=SOURCE", multiple=True,
    help="A disk: REV:VOLUME, a SIZE such as 10G (empty), or an image file, as FORMAT:FILE where "
    "its name does not tell its format.  "
    "[default: the volumes of the branch]",
)  # fmt: skip
@click.option("--kernel", type=FILE, help="Boot this kernel; it is kept in the vault.")
@click.option("--initrd", type=FILE, help="With this initial file system.")
@click.option("--append", default="", metavar="TEXT", help="And this command line.")
@click.option(
    "--firmware", type=click.Choice(["bios", "uefi"]), default="bios", show_default=True,
    help="What boots the first disk; uefi keeps its variables as volume nvram.",
)  # fmt: skip
@click.option(
    "--net", type=click.Choice(["none", "user"]), default="none", show_default=True,
    help="Network: none, or QEMU's own, which reaches out and lets nobody in.",
)  # fmt: skip
@click.option("-m", "--message", default="machine configured", help="What this state is.")
@click.argument("qemu_args", metavar="[-- QEMU ARGS]", nargs=-1)
@with_vault
def run(
    vault: Vault,
    branch: str,
    memory: int,
    cpus: int,
    disks: tuple[str, ...],
    kernel: Path | None,
    initrd: Path | None,
    append: str,
    firmware: str,
    net: str,
    message: str,
    qemu_args: tuple[str, ...],
    as_json: bool,
) -> None:
    """Configure the machine of a branch.

    The branch is made if it does not exist.  The configuration becomes part of a new snapshot, and
    of every later one.  A volume of another revision is not copied.
    """
    from blockvault.ops.compose import Source, compose
    from blockvault.vm import host
    from blockvault.vm.machine import CONFIG, INITRD, KERNEL, NVRAM, Machine, mac_for

    runtime()  # where what QEMU told before is kept
    sources = [_source(vault, text) for text in disks]
    names = [source.volume for source in sources] or _volumes(vault, branch)
    if firmware == "uefi" and NVRAM not in {*names, *_volumes(vault, branch)}:
        sources.append(Source(NVRAM, image=host.firmware()[1], format="raw"))
    made = Machine(
        memory=memory,
        cpus=cpus,
        disks=tuple(name for name in names if name != NVRAM),
        kernel=kernel is not None,
        initrd=initrd is not None,
        append=append,
        firmware=firmware,
        net=net,
        mac=mac_for(f"{vault.options.vault_id.hex()} {branch}") if net != "none" else "",
        type=host.machine_type(),
        qemu_args=qemu_args,
    )
    files: dict[str, bytes | Path] = {CONFIG: made.encode()}
    files |= {name: path for name, path in ((KERNEL, kernel), (INITRD, initrd)) if path}
    snapshot = compose(vault, branch, sources, files, message=message, origin="vm create")
    if as_json:
        output.write_json(history.snapshot_json(snapshot))
    else:
        output.write(history.recorded(branch, snapshot))
        shown = ", ".join(f"{v.name} {output.size(v.size)}" for v in snapshot.volumes)
        output.write(f" {output.size(memory)} of memory, {output.plural(cpus, 'processor')}")
        output.write(f" disks: {shown or 'none'}")


def _volumes(vault: Vault, branch: str) -> list[str]:
    """The volumes that the branch has already."""
    from blockvault.ops import positions

    heads = (positions.head_of(vault, each) for each in vault.branches() if each.name == branch)
    return [volume.name for head in heads for volume in head.volumes]


def _source(vault: Vault, text: str) -> Source:
    """``NAME=REV:VOLUME``, ``NAME=SIZE``, ``NAME=IMAGE`` or ``NAME=FORMAT:IMAGE``."""
    from blockvault.ops.compose import Source

    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise BadRequest(f"{text!r} is not NAME=REV:VOLUME, NAME=SIZE or NAME=IMAGE")
    if _is_image(value):
        return Source(name, image=Path(value))
    stated, _, file = value.partition(":")
    if stated in FORMATS and _is_image(file):
        return Source(name, image=Path(file), format=stated)
    revision, volume = vault.split(value)
    if volume is not None:
        return Source(name, revision=revision, of=volume)
    try:
        return Source(name, size=parse_size(value))
    except click.BadParameter:
        raise NotFound(
            f"{value!r} is no image file, no size, and no REV:VOLUME", kind="no-image"
        ) from None


def _is_image(text: str) -> bool:
    """Whether this means a file: it is one, or is written as the path of one."""
    path = Path(text)
    return text.startswith(("/", "./", "../")) or path.is_file() or path.is_block_device()
