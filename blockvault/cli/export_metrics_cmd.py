"""``blockvault export-metrics``: the vault's figures for Prometheus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blockvault import files
from blockvault.cli import output
from blockvault.cli.common import command, with_vault

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "export-metrics",
    examples={
        "blockvault export-metrics": "Print them.",
        "blockvault export-metrics -o /var/lib/node_exporter/blockvault.prom": (
            "For the textfile collector of node_exporter; the file is replaced at once."
        ),
    },
)
@click.option(
    "-o", "--output", "target", metavar="FILE", type=click.Path(path_type=Path),
    help="Write them to this file instead.",
)  # fmt: skip
@with_vault
def run(vault: Vault, target: Path | None) -> None:
    """Print the vault's figures for Prometheus.

    Sizes, numbers of names, times of the last event and of the last maintenance; and what running
    servers of this vault have done.  Takes no longer for a larger vault.
    """
    from blockvault.ops import metrics, targets

    if target is not None:
        targets.refuse_inside(vault.path, target)
    found = [*metrics.of_vault(vault), *metrics.of_servers(_servers(vault))]
    text = metrics.render(found)
    if target is None:
        output.write(text.rstrip("\n"))
        return
    files.replace(target, text.encode(), mode=0o666)


def _servers(vault: Vault) -> list[dict[str, Any]]:
    from blockvault.nbd import control

    return [status for _, status in control.statuses(vault.path) if status is not None]
