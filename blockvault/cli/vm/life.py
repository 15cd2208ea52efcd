"""The life of a machine's process, from its start to its end; who begins it decides where.

vm run              in the foreground: this process is the machine's          run_machine
vm start, vm clone  behind: a fork of this process is, which outlives it      background
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockvault.cli import logs, output, signals, tuning
from blockvault.cli.vm import common

if TYPE_CHECKING:
    from blockvault.vault import Vault
    from blockvault.vm.planning import How
    from blockvault.vm.supervisor import Supervisor

Tell = Callable[[dict[str, Any]], None]


def run_machine(vault: Vault, branch: str, how: How, tell: Tell) -> None:
    """Run a branch's machine until it ends; ``tell`` hears what was done once it is up.

    What goes wrong before that is raised.
    """
    from blockvault.vm.supervisor import Supervisor

    tuning.for_months()
    logs.begin()
    with contextlib.ExitStack() as stack:
        supervisor = Supervisor(
            vault,
            branch,
            common.runtime(),
            common.server(vault),
            lambda it: _take_orders(it, stack),
            how,
        )
        # Nothing is lost that the guest was promised, whatever is not waited for.
        signals.on_end(lambda: setattr(supervisor, "told_to_end", True), supervisor.kill)
        told = supervisor.start()
        tell({"branch": branch, "told": told, "pid": os.getpid()})
        output.write(f"Machine {branch} {told}")
        output.flush()
        output.write(f"Machine {branch} has ended: {output.clean(supervisor.run())}")


def _take_orders(supervisor: Supervisor, stack: contextlib.ExitStack) -> Path:
    """Open the supervisor's control socket, which ``stack`` closes."""
    from blockvault.nbd.control import ControlServer
    from blockvault.vm.orders import Orders

    control = ControlServer(supervisor.vault.path, Orders(supervisor).handlers())
    stack.callback(control.close)
    return control.path
