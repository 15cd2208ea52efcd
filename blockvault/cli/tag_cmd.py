"""``blockvault tag``: list, create or delete tags."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault
from blockvault.ids import short

if TYPE_CHECKING:
    from blockvault.ops.refs import Tag
    from blockvault.vault import Vault


@command(
    "tag",
    examples={
        "blockvault tag": "List tags.",
        "blockvault tag v1.0": "Name the current state.",
        "blockvault tag before-update 'main@{2026-11-23T10:00:05}'": "Name a moment of the past.",
        "blockvault tag -d v1.0": "Delete the name; the snapshot stays.",
    },
    shape={
        "name": "name of the tag",
        "snapshot": "id of the snapshot that it names",
        "seq": "sequence number of the event that made it",
    },
)
@click.argument("name", required=False, shell_complete=complete.tags)
@click.argument("revision", metavar="[REV]", required=False, shell_complete=complete.revisions)
@click.option("-d", "--delete", is_flag=True, help="Delete tag NAME.")
@click.option("-f", "--force", is_flag=True, help="Move tag NAME if it exists.")
@with_vault
def run(
    vault: Vault, name: str | None, revision: str | None, delete: bool, force: bool, as_json: bool
) -> None:
    """List, create or delete tags.

    A tag names one snapshot for ever; a state that is no snapshot yet becomes one.  Without REV it
    is the head of the current branch.
    """
    if name is None:
        if delete:
            raise click.UsageError("--delete needs the name of a tag")
        _list(vault, as_json)
        return
    if delete:
        if revision is not None:
            raise click.UsageError("--delete takes one name")
        tag = next((tag for tag in vault.tags() if tag.name == name), None)
        vault.delete_tag(name)
    else:
        tag = vault.tag(name, "HEAD" if revision is None else revision, force=force)
    if tag is None:
        return
    if as_json:
        output.write_json(_json(tag))
    elif delete:
        output.write(f"Deleted tag {name} (was {short(tag.snapshot)})")
    else:
        output.write(f"Tagged {short(tag.snapshot)} as {name}")


def _list(vault: Vault, as_json: bool) -> None:
    tags = vault.tags()
    if as_json:
        for tag in tags:
            output.write_json(_json(tag))
        return
    rows = [
        (
            tag.name,
            click.style(short(tag.snapshot), fg="yellow"),
            output.subject(vault.get_snapshot(tag.snapshot).message),
        )
        for tag in tags
    ]
    for line in output.columns(rows):
        output.write(line)


def _json(tag: Tag) -> dict[str, object]:
    return {"name": tag.name, "snapshot": tag.snapshot.hex(), "seq": tag.seq}
