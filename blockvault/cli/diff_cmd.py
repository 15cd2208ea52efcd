"""``blockvault diff``: compare two revisions, or a revision and an image file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import changes, complete, output
from blockvault.cli.common import FORMATS, command, with_vault
from blockvault.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from blockvault.ops.compare import AttachmentDiff, VolumeDiff
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
        "attachment": "true for a file kept with both snapshots, such as a machine's memory",
        "lines[]": "lines of a configuration that differ, the old ones with -, the new with +",
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
    the size.  Of two snapshots of a machine, memory and configuration are compared as well.

    A path that begins with / or ./, or a name that is no revision but a file, is an
    image FILE; one volume of REV1 is compared with it.
    """
    file = _image(vault, second, image_format)
    kept: list[AttachmentDiff] = []
    if file is None:
        found = _compare(vault, first, second, volume)
        kept = _attachments(vault, first, second) if volume is None else []
    else:
        from blockvault.ops.compare import diff_file

        found = changes.real([diff_file(vault, first, volume, file, format=image_format)])
    if as_json:
        for item in found:
            output.write_json(_json(item, False, ()))
        for each in kept:
            output.write_json(_json(each.volume, True, each.lines))
    elif form == "extents":
        for item in [*found, *(each.volume for each in kept)]:
            for offset, length in item.extents:
                output.write(f"{output.clean(item.name)}\t{offset}\t{length}")
    else:
        for line in changes.stat([*found, *(each.volume for each in kept)]):
            output.write(line)
        for each in kept:
            for line in each.lines:
                output.write(f"{output.clean(each.volume.name)}: {output.clean(line)}")
    if exit_code and (found or kept):
        click.get_current_context().exit(_DIFFERENT)


def _json(item: VolumeDiff, attachment: bool, lines: Sequence[str]) -> dict[str, Any]:
    also = {"attachment": attachment, "lines": list(lines)}
    return changes.summary_json(item) | {"extents": list(item.extents)} | also


def _attachments(vault: Vault, first: str, second: str) -> list[AttachmentDiff]:
    """Memory, devices and configuration of two full snapshots, where they differ."""
    from blockvault.ops.compare import diff_attachments

    both = vault.resolve(first), vault.resolve(second)
    return [each for each in diff_attachments(vault, *both) if each.volume.differs]


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
