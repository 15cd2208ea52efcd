"""``blockvault log``: list the snapshots that led to one or several revisions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, history, output
from blockvault.cli.common import COUNT, command, with_vault

if TYPE_CHECKING:
    from blockvault.model.snapshot import Snapshot
    from blockvault.ops.positions import Position
    from blockvault.vault import Vault


@command(
    "log",
    examples={
        "blockvault log": "The current branch, newest first.",
        "blockvault log --oneline -n 5 main~2": "Five lines, from the third newest backward.",
        "blockvault log --graph --oneline --all": "All branches and how they parted.",
        "blockvault log --json | jq -r .message": "Messages only.",
    },
    shape={**history.SNAPSHOT_SHAPE, "names[]": "what points at it: HEAD -> main, tag: v1"},
)
@click.argument("revisions", metavar="[REV]...", nargs=-1, shell_complete=complete.revisions)
@click.option("--all", "everything", is_flag=True, help="Start from all branches and tags.")
@click.option("--graph", is_flag=True, help="Draw the lines of history.")
@click.option("--oneline", is_flag=True, help="One line for each snapshot.")
@click.option("-n", "--max-count", "count", metavar="N", type=COUNT, help="At most N.")
@with_vault
def run(
    vault: Vault,
    revisions: tuple[str, ...],
    everything: bool,
    graph: bool,
    oneline: bool,
    count: int | None,
    as_json: bool,
) -> None:
    """List the snapshots that led to a revision.

    Newest first, starting from the head of the current branch or from the revisions given.
    """
    from blockvault.ops import snapshots

    names = history.names_of(vault)
    starts = [vault.resolve(text) for text in revisions]
    if everything:
        starts += _all(vault)
    found = islice(snapshots.log(vault, *(starts or [vault.resolve()])), count)
    if as_json:
        for snapshot in found:
            known = {"names": list(names.get(snapshot.id, ()))}
            output.write_json(history.snapshot_json(snapshot) | known)
    elif graph:
        _write_graph(found, names, oneline)
    else:
        _write_list(found, names, oneline)


def _all(vault: Vault) -> Iterator[Position]:
    """What all branches and tags stand for; not by their names, which may stand for several."""
    from blockvault.ops import positions

    for branch in vault.branches():
        yield positions.head_of(vault, branch)
    for tag in vault.tags():
        yield positions.of_snapshot(vault, tag.snapshot)


def _write_list(snapshots: Iterator[Snapshot], names: history.Names, oneline: bool) -> None:
    for place, snapshot in enumerate(snapshots):
        if oneline:
            output.write(history.oneline(snapshot, names))
            continue
        if place:
            output.write()
        output.write("\n".join(history.paragraph(snapshot, names)))


def _write_graph(snapshots: Iterator[Snapshot], names: history.Names, oneline: bool) -> None:
    from blockvault.cli.graph import Graph

    graph = Graph()
    for snapshot in snapshots:
        if oneline:
            text = [history.oneline(snapshot, names)]
        else:
            text = [*history.paragraph(snapshot, names), ""]
        output.write("\n".join(graph.draw(snapshot.id, snapshot.parents, text)))
