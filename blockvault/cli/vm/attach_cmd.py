"""``blockvault vm attach``: record a QEMU that somebody else started."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import complete, history, output
from blockvault.cli.common import command, with_vault
from blockvault.cli.vm import common
from blockvault.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blockvault.nbd.control import Remote
    from blockvault.vault import Vault
    from blockvault.vm.foreign import Disk, Foreign
    from blockvault.vm.handover import Disks


@command(
    "attach",
    examples={
        "blockvault vm attach --qmp /run/web.qmp web -m 'before the upgrade'": "All that it is.",
        "blockvault vm attach --qmp /run/web.qmp web --disk-only": "Its disks alone.",
    },
    shape={
        **history.SNAPSHOT_SHAPE,
        "pause": "seconds for which the guest stood still",
        "used": "bytes of guest memory that hold data; null without memory",
    },
)
@click.argument("branch", shell_complete=complete.branches)
@common.qmp_option()
@click.option("-m", "--message", default="", help="What this state is.")
@click.option("--author", help="Who made it.  [default: user@host]")
@click.option("--disk-only", is_flag=True, help="Only the disks, as after a power cut.")
@with_vault
def run(
    vault: Vault,
    branch: str,
    qmp: Path,
    message: str,
    author: str | None,
    disk_only: bool,
    as_json: bool,
) -> None:
    """Record a QEMU that somebody else started, by hand or through libvirt.

    SOCKET is a QMP monitor of it that nobody else is connected to.  If its disks are on this
    vault's NBD server, as volumes of BRANCH, they are recorded there; otherwise they are copied
    into BRANCH while the guest runs.  Its memory is taken while it runs, too; it stands still for
    what has changed since.  'blockvault vm load' gives the state back.
    """
    from blockvault.ops import snapshots
    from blockvault.vm import handover
    from blockvault.vm.foreign import Foreign

    snapshots.check_words(message, author)
    with Foreign(qmp) as machine:
        if not disk_only:
            machine.check()
        with contextlib.closing(_disks(vault, branch, machine)) as disks:
            if disk_only:
                taken = handover.take_disks(machine, disks, message, author)
            else:
                taken = handover.take(vault, machine, disks, message, author)
    snapshot = vault.get_snapshot(taken.id)
    used = None if disk_only else taken.used
    if as_json:
        cost = {"pause": taken.pause, "used": used}
        output.write_json(history.snapshot_json(snapshot) | cost)
        return
    output.write(history.recorded(branch, snapshot))
    memory = "" if used is None else f"{output.size(used)} of memory; "
    output.write(f" {memory}the guest stood for {taken.pause * 1000:.0f} ms")


class _Served:
    """Disks that a server of this vault has already; it is the one to record them."""

    def __init__(self, remote: Remote, branch: str) -> None:
        self._remote = remote
        self._branch = branch

    def begin(self) -> None:
        """They are where they belong."""

    def settle(self) -> None:
        """QEMU has flushed them when it stopped."""

    def record(self, message: str, author: str | None, kept: list[Any]) -> bytes:
        from blockvault.ops import attachments

        made = self._remote.ask(
            "snapshot",
            branch=self._branch,
            message=message,
            author=author,
            attachments=attachments.to_rows(kept),
        )
        return bytes.fromhex(made["id"])

    def close(self) -> None:
        """Nothing was opened."""


def _disks(vault: Vault, branch: str, machine: Foreign) -> Disks:
    """How this QEMU's disks come into the branch."""
    from blockvault.nbd import control
    from blockvault.vm import mirror

    disks = machine.disks()
    remote = control.holder(vault.path, branch)
    if remote is None:
        mirror.make_room(vault, branch, disks)
        session = vault.session(branch, holder=mirror.HOLDER)
        folder = common.runtime()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        run_dir = common.run_dir(vault, vault.branch(branch))
        path = folder / f"attach-{run_dir.path.name}.nbd"  # of this vault's branch, and no other's
        try:
            return mirror.Mirrored(machine.monitor, session, disks, common.server(vault), path)
        except BaseException:
            session.close()
            raise
    addresses = remote.ask("status")["addresses"]
    elsewhere = [disk.name for disk in disks if not _is_here(disk, addresses, branch)]
    if elsewhere:
        raise Conflict(
            f"'{branch}' is being served, and disk '{elsewhere[0]}' is not on that server; record "
            "into a branch that nobody serves, or move all of its disks there",
            kind="disk-elsewhere",
        )
    return _Served(remote, branch)


def _is_here(disk: Disk, addresses: Sequence[str], branch: str) -> bool:
    return disk.server in addresses and disk.export.rpartition("/")[0] == branch
