"""``blockvault vm``: the group of commands about machines; each is a module of ``cli.vm``."""

from __future__ import annotations

from importlib import import_module

import click

from blockvault.cli.common import CONTEXT, Group, vault_option

SUMMARIES = {
    "create": "Configure the machine of a branch.",
    "start": "Start a machine in the background.",
    "run": "Run a machine in the foreground.",
    "stop": "Switch a machine off.",
    "list": "List machines and whether they run.",
    "snapshot": "Record a running machine: disks, memory, processors, configuration.",
    "rollback": "Give a machine the state of any revision.",
    "clone": "Start a second machine from a running one.",
    "pause": "Let a machine stand still.",
    "resume": "Let a paused machine go on.",
    "console": "Connect to a machine's serial console.",
    "log": "Print what a machine wrote to its serial console.",
    "attach": "Record a QEMU that somebody else started.",
    "load": "Give a QEMU that somebody else started a recorded state.",
    "qmp": "Send one command to a machine's QEMU.",
}


class Machines(Group):
    """Loads a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUMMARIES:
            return None
        command: click.Command = import_module(f"blockvault.cli.vm.{cmd_name}_cmd").run
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.group(
    "vm", cls=Machines, no_args_is_help=True, context_settings=CONTEXT, params=[vault_option()]
)
def run() -> None:
    """Run machines from branches, with snapshots of all that they are.

    A machine runs in QEMU, its disks are volumes of its branch, and each of its writes is an event
    of the branch's history.  A full snapshot holds its disks, memory, processors and devices, all
    of one instant, and the machine goes on from any of them, as often as is wanted.
    """
