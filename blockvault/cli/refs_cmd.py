"""``blockvault refs``: list every name and what it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from blockvault.cli import output
from blockvault.cli.common import command, with_vault

if TYPE_CHECKING:
    from blockvault.vault import Vault

_NO_SNAPSHOT = "-"


@command(
    "refs",
    examples={
        "blockvault refs": "Full ids and names, for scripts.",
        "blockvault refs | grep tags/": "Tags only.",
    },
    shape={
        "name": "HEAD, heads/BRANCH or tags/TAG",
        "snapshot": "id of the newest snapshot it stands for, or null",
        "target": "for HEAD the name of the current branch, else null",
    },
)
@with_vault
def run(vault: Vault, as_json: bool) -> None:
    """List every name and what it stands for.

    HEAD and branches stand for their newest snapshot here; a head may hold later writes.
    """
    for name, snapshot, target in _refs(vault):
        oid = snapshot.hex() if snapshot else None
        if as_json:
            output.write_json({"name": name, "snapshot": oid, "target": target})
        else:
            output.write(f"{oid or _NO_SNAPSHOT:64}  {name}")


def _refs(vault: Vault) -> Iterator[tuple[str, bytes | None, str | None]]:
    head = vault.branch()
    yield "HEAD", head.tip, head.name
    for branch in vault.branches():
        yield f"heads/{branch.name}", branch.tip, None
    for tag in vault.tags():
        yield f"tags/{tag.name}", tag.snapshot, None
