"""``blockvault vm run``: run a machine in the foreground; ``vm start`` does so behind."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import command, with_vault

if TYPE_CHECKING:
    from blockvault.vault import Vault


@command(
    "run",
    examples={
        "blockvault vm run web": "Until its guest is powered off, or Ctrl-C.",
        "blockvault vm run web --boot": "From its disks, even if it has saved memory.",
    },
)
@click.argument("branch", shell_complete=complete.branches)
@click.option("--boot", is_flag=True, help="Boot from the disks, even if memory was saved.")
@click.option("--paused", is_flag=True, help="Let a resumed machine stand still at first.")
@click.option("-f", "--force", is_flag=True, help="Try a state that another QEMU saved.")
@click.option("--throw-away", is_flag=True, help="Delete the branch when the machine ends.")
@click.option("--notify", type=int, hidden=True, help="File descriptor to report to.")
@with_vault
def run(
    vault: Vault,
    branch: str,
    boot: bool,
    paused: bool,
    force: bool,
    throw_away: bool,
    notify: int | None,
) -> None:
    """Run a machine in the foreground.

    If the branch's head is a full snapshot, the machine goes on from it; otherwise it boots from
    its disks.  A machine whose supervisor died is taken over.  SIGTERM and Ctrl-C switch it off as
    a power cut does: what the guest has flushed is safe.
    """
    from blockvault.cli.vm import common
    from blockvault.nbd.control import ControlServer
    from blockvault.vm.orders import Orders
    from blockvault.vm.supervisor import Supervisor

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    try:
        serve = common.server(vault)
        supervisor = Supervisor(vault, branch, common.runtime(), serve, throw_away=throw_away)
        control = ControlServer(vault.path, Orders(supervisor).handlers())
        supervisor.control = str(control.path)
    except BaseException as error:
        common.notify(notify, common.failure(error))
        raise
    try:
        common.on_signals(lambda: setattr(supervisor, "told_to_end", True))
        try:
            told = supervisor.start(boot=boot, force=force, paused=paused)
        except BaseException as error:
            common.notify(notify, common.failure(error))
            raise
        common.notify(notify, {"branch": branch, "told": told, "pid": os.getpid()})
        output.write(f"Machine {branch} {told}")
        output.flush()
        output.write(f"Machine {branch} has ended: {output.clean(supervisor.run())}")
    finally:
        control.close()
