"""``blockvault diff``: compare two revisions, or a revision and an image file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockvault.cli import changes, complete, output
from blockvault.cli.common import FORMATS, command, with_vault
from blockvault.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from blockvault.ops.compare import VolumeDiff
    from blockvault.vault import Vault

_DIFFERENT = 1  # exit code of --exit-code


@command(
    "diff",
    examples={
        "blockvault diff": "What changed since the newest snapshot of the current branch.",
        "blockvault diff main~1 main": "Two states of a branch.",
        "blockvault diff main test --extents": "Each range: volume, offset and length in bytes.",
        "blockvault diff v1.0 disk.img --volume vda": "A stored volume and an image file.",
        "blockvault diff --exit-code main test || echo differs": "For scripts: exit code 1 if so.",
    },
    shape={
        "volume": "a volume that differs",
        "size_a": "its size in the first state, or null if it is not there",
        "size_b": "its size in the second state, or null",
        "changed": "bytes that differ, in whole blocks",
        "ranges": "number of ranges that differ",
        "extents[]": "each range that differs: [offset, length] in bytes",
    },
)
@click.argument("first", metavar="[REV1]", default="HEAD~0", shell_complete=complete.revisions)
@click.argument("second", metavar="[REV2|FILE]", default="HEAD", shell_complete=complete.revisions)
@click.option(
    "--stat", "form", flag_value="stat", default=True, help="A line per volume (default)."
)
@click.option("--extents", "form", flag_value="extents", help="A line per range that differs.")
@click.option("--volume", metavar="NAME", help="Compare this volume only.")
@click.option("--format", "image_format", type=click.Choice(FORMATS), help="Format of FILE.")
@click.option("--exit-code", is_flag=True, help="End with 1 if there are differences, else 0.")
@with_vault
def run(
    vault: Vault,
    first: str,
    second: str,
    form: str,
    volume: str | None,
    image_format: str | None,
    exit_code: bool,
    as_json: bool,
) -> None:
    """Compare two revisions, or a revision and an image.

    They may be on any branches; REV1 is the newest snapshot of the current branch and REV2 its head
    unless given.  Equal parts are skipped by their hashes: the time depends on what differs, not on
    the size.  A path that begins with / or ./, or a name that is no revision but a file, is an
    image FILE; one volume of REV1 is compared with it.
    """
    file = _image(vault, second, image_format)
    if file is None:
        found = _compare(vault, first, second, volume)
    else:
        from blockvault.ops.compare import diff_file

        found = changes.real([diff_file(vault, first, volume, file, format=image_format)])
    if as_json:
        for item in found:
            output.write_json(changes.summary_json(item) | {"extents": list(item.extents)})
    elif form == "extents":
        for item in found:
            for offset, length in item.extents:
                output.write(f"{output.clean(item.name)}\t{offset}\t{length}")
    else:
        for line in changes.stat(found):
            output.write(line)
    if exit_code and found:
        click.get_current_context().exit(_DIFFERENT)


def _compare(vault: Vault, first: str, second: str, volume: str | None) -> list[VolumeDiff]:
    found = vault.diff(first, second)
    if volume is None:
        return changes.real(found)
    if all(item.name != volume for item in found):
        raise NotFound(f"neither {first} nor {second} has a volume {volume!r}", kind="no-volume")
    return changes.real(item for item in found if item.name == volume)


def _image(vault: Vault, text: str, image_format: str | None) -> Path | None:
    """The file that ``text`` means, if it means a file."""
    path = Path(text)
    if image_format or text.startswith(("/", "./", "../")):
        return path
    try:
        vault.resolve(text)
    except (NotFound, BadRequest):
        if path.exists():
            return path
        raise
    return None
