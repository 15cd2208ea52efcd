"""``blockvault checkout``: write a revision's volumes to a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output, tuning
from blockvault.cli.common import command, with_vault
from blockvault.cli.progress import progress

if TYPE_CHECKING:
    from blockvault.vault import Vault

_MARKS = {"new": "A", "update": "M", "unchanged": " ", "remove": "D"}


@command(
    "checkout",
    examples={
        "blockvault checkout main work": "All volumes of main as work/NAME.raw.",
        "blockvault checkout main~1 work": "Rewrite only blocks that differ.",
        "blockvault checkout v1.0 work --volume vda": "One volume.",
        "blockvault checkout main work --dry-run": "Show what would be written.",
        "blockvault checkout web vm --machine": "The folder that 'import --machine' took in.",
    },
    shape={
        "name": "volume or attachment",
        "path": "the file",
        "size": "its size in bytes",
        "mode": "new, update, unchanged or remove",
        "bytes_to_write": "bytes that differ from what the directory held",
    },
)
@click.argument("revision", metavar="REV", shell_complete=complete.revisions)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--volume", "volumes", metavar="NAME", multiple=True, help="Only this volume.")
@click.option("-f", "--force", is_flag=True, help="Overwrite files that were written to since.")
@click.option(
    "--machine", is_flag=True, help="Write the hypervisor's folder that 'import --machine' read."
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be written; write nothing.")
@with_vault
def run(
    vault: Vault,
    revision: str,
    directory: Path,
    volumes: tuple[str, ...],
    force: bool,
    machine: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a revision's volumes to a directory.

    Each volume becomes a sparse file NAME.raw beside its attachments and a manifest.  In a
    directory that holds an earlier checkout only blocks that differ are written.  A file that was
    written to since is left alone unless --force is given: take its changes back first, with
    'blockvault snapshot --from DIR'.

    With --machine, disks get the format that they had when 'import --machine' read them, and the
    machine's other files come back as they were; DIR must be new or empty.  The system brings these
    files to the disk in its own time, as those of 'export'; all others are there in the end.
    """
    if machine:
        if volumes or force or dry_run:
            raise click.UsageError("--machine writes a whole new folder and takes no such options")
        _machine(vault, revision, directory, as_json)
        return
    from blockvault.ops import checkout

    tuning.for_a_command()
    plan = checkout.plan(vault, revision, directory, volumes=list(volumes) or None, force=force)
    if not dry_run:
        with progress("Writing", quiet=as_json) as report:
            plan = checkout.execute(vault, plan, progress=report)
    for item in plan.items:
        if as_json:
            fields = output.pick(item, ("name", "size", "mode", "bytes_to_write"))
            output.write_json(fields | {"path": str(item.path)})
        else:
            written = f"{output.size(item.bytes_to_write)} of {output.size(item.size)}"
            output.write(f"{_MARKS[item.mode]} {output.clean(str(item.path))}  {written}")


def _machine(vault: Vault, revision: str, directory: Path, as_json: bool) -> None:
    from blockvault.vm import folders

    with progress("Writing", quiet=as_json) as report:
        found = folders.give_back(vault, revision, directory, progress=report)
    written = dict(found.files) | {disk.volume: disk.path for disk in found.disks}
    for name, path in sorted(written.items()):
        size = (directory / path).stat().st_size
        if as_json:
            fields = {"name": name, "size": size, "mode": "new", "bytes_to_write": size}
            output.write_json(fields | {"path": str(directory / path)})
        else:
            output.write(f"A {output.clean(str(directory / path))}  {output.size(size)}")
