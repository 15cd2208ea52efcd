"""How snapshots, volumes and the names that point at them are shown, in text and in JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import click

from blockvault.cli import output
from blockvault.ids import short

if TYPE_CHECKING:
    from blockvault.model.snapshot import Snapshot
    from blockvault.vault import Vault


class VolumeLike(Protocol):
    """A named content: its size in bytes and the Merkle root of its blocks."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def root(self) -> bytes: ...


Names = Mapping[bytes, list[str]]

VOLUME_SHAPE = {
    "volumes[].name": "name of the volume",
    "volumes[].size": "its size in bytes",
    "volumes[].root": "Merkle root of its content, 64 hex digits; equal content, equal root",
}

SNAPSHOT_SHAPE = {
    "id": "id of the snapshot, 64 hex digits",
    "parents[]": "ids of the snapshots it was made from, the first is its own line of history",
    "seq": "the event that its state stands on: the last one of its branch before it",
    "time": "when it was made, UTC",
    "author": "who made it",
    "message": "its message",
    **VOLUME_SHAPE,
    "attachments[].name": "name of a file kept with the snapshot",
    "attachments[].size": "its size in bytes",
    "attachments[].root": "Merkle root of its content",
}


def names_of(vault: Vault) -> Names:
    """What points at each snapshot: ``HEAD -> main``, other branches, tags."""
    names: dict[bytes, list[str]] = {}
    head = vault.head
    for branch in sorted(vault.branches(), key=lambda branch: branch.name != head):
        if branch.tip is not None:
            label = f"HEAD -> {branch.name}" if branch.name == head else branch.name
            names.setdefault(branch.tip, []).append(label)
    for tag in vault.tags():
        names.setdefault(tag.snapshot, []).append(f"tag: {tag.name}")
    return names


def decoration(names: Names, oid: bytes) -> str:
    """`` (HEAD -> main, tag: v1)`` behind an id, or nothing."""
    found = names.get(oid)
    return click.style(f" ({', '.join(found)})", fg="green") if found else ""


def volumes_json(volumes: Iterable[VolumeLike]) -> list[dict[str, Any]]:
    return [{"name": v.name, "size": v.size, "root": v.root.hex()} for v in volumes]


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """The object that ``SNAPSHOT_SHAPE`` describes."""
    return {
        "id": snapshot.id.hex(),
        "parents": [parent.hex() for parent in snapshot.parents],
        "seq": snapshot.seq,
        "time": output.utc_time(snapshot.time_us),
        "author": snapshot.author,
        "message": snapshot.message,
        "volumes": volumes_json(snapshot.volumes),
        "attachments": volumes_json(snapshot.attachments),
    }


def oneline(snapshot: Snapshot, names: Names) -> str:
    """A snapshot in one line: short id, names, first line of the message."""
    oid = click.style(short(snapshot.id), fg="yellow")
    return f"{oid}{decoration(names, snapshot.id)} {output.subject(snapshot.message)}".rstrip()


def paragraph(snapshot: Snapshot, names: Names) -> Iterator[str]:
    """A snapshot in full: id, where it stands, who and when, and the whole message, indented."""
    oid = click.style(f"snapshot {snapshot.id.hex()}", fg="yellow")
    yield oid + decoration(names, snapshot.id)
    if len(snapshot.parents) > 1:
        yield "Merge:   " + " ".join(map(short, snapshot.parents))
    yield f"Author:  {output.clean(snapshot.author)}"
    yield f"Date:    {output.local_time(snapshot.time_us)}"
    message = snapshot.message.strip().splitlines()
    yield from [""] if message else []
    yield from (f"    {output.clean(line)}".rstrip() for line in message)


def recorded(branch: str, snapshot: Snapshot) -> str:
    """What a command says when it has made a snapshot: ``[main 0123456789ab] message``."""
    place = click.style(f"[{branch} {short(snapshot.id)}]", fg="green")
    return f"{place} {output.subject(snapshot.message)}".rstrip()
