"""The entry point: find the command, run it, and end with one clear line and an exit code.

Start-up is most of what a short command costs, so nothing is imported before it is needed: the
table below holds each command's summary, and its module is loaded only when it runs.  Whatever
goes wrong, ``failing.report`` tells it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from blockvault.cli import signals, tuning
from blockvault.cli.common import CONTEXT, Settings, vault_option
from blockvault.cli.failing import PROGRAM, report, wants_json

COMPLETE_VAR = "_BLOCKVAULT_COMPLETE"

SECTIONS: dict[str, dict[str, str]] = {
    "Start a vault and fill it": {
        "init": "Create an empty vault.",
        "import": "Store disk images as a new snapshot.",
        "snapshot": "Record the head of a branch as a new snapshot.",
        "commit": "The same as snapshot.",
    },
    "Look at history": {
        "log": "List the snapshots that led to a revision.",
        "show": "Describe one revision and what it changed.",
        "diff": "Compare two revisions, or a revision and an image.",
        "events": "List the write-level log.",
        "reflog": "List where a branch has been.",
        "refs": "List every name and what it stands for.",
        "bisect": "Find the snapshot, flush or write after which something fails.",
    },
    "Move in history": {
        "branch": "List, create, rename, delete or restore branches.",
        "switch": "Make another branch the current one.",
        "tag": "List, create or delete tags.",
        "rollback": "Give a branch the state of any revision.",
    },
    "Take states out": {
        "checkout": "Write a revision's volumes to a directory.",
        "export": "Write one volume to an image file.",
        "cat": "Write a volume's bytes to standard output.",
    },
    "Run machines on it": {
        "serve": "Serve volumes to virtual machines over NBD.",
        "status": "Show what is being served.",
        "attach": "Print what to type to use an export.",
        "vm": "Run machines from branches, with snapshots of all that they are.",
    },
    "Look after the vault": {
        "policy": "Show or set what is kept, and how gc packs what is cold.",
        "hold": "Hold a revision so that no policy forgets it, or list what is held.",
        "unhold": "Unhold a revision: let the policies decide on it again.",
        "prune": "Forget snapshots and writes that the policies do not keep.",
        "gc": "Give back the space of what nothing needs any more.",
        "compact": "Write the data file anew without its free pages.",
        "stats": "Show how much space the vault takes, and for what.",
        "export-metrics": "Print the vault's figures for Prometheus.",
        "verify": "Check that everything stored is whole.",
        "repair": "Bring back what is lost.",
        "rebuild": "Rebuild all tables from the event log.",
        "completion": "Print a script that completes commands in a shell.",
    },
}
ALIASES = {"commit": "snapshot"}
SUMMARIES = {name: text for section in SECTIONS.values() for name, text in section.items()}


class Program(click.Group):
    """A group whose commands are modules, loaded when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUMMARIES:
            return None
        file = ALIASES.get(cmd_name, cmd_name).replace("-", "_")
        module = import_module(f"blockvault.cli.{file}_cmd")
        command: click.Command = module.run
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in SUMMARIES and not name.startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"there is no command {name!r}{_did_you_mean(name)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, SUMMARIES))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])


def _did_you_mean(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, SUMMARIES, n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from blockvault import __version__

        click.echo(f"{PROGRAM} {__version__}")
        ctx.exit()


@click.group(
    PROGRAM,
    cls=Program,
    no_args_is_help=True,
    context_settings=CONTEXT,
    params=[vault_option(envvar="BLOCKVAULT_VAULT", show_envvar=True)],
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
def program() -> None:
    """git for virtual machines: keep the whole history of disks, read any moment of it.

    A vault is the folder .blockvault, found from the working directory upward.
    'blockvault COMMAND --help' explains a command and shows examples.
    """


def main() -> NoReturn:
    """The installed program.

    When ``run`` returns all is closed and flushed, so the process ends at once: to take the
    interpreter down piece by piece would be a tenth of the time of a short command.
    """
    tuning.threads()
    signals.unwind()
    os._exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line; return the exit code.  Nothing escapes but the exit itself."""
    try:
        _prepare_streams()
        instruction = os.environ.get(COMPLETE_VAR)
        if instruction:
            from blockvault.cli.complete import answer

            return answer(program, COMPLETE_VAR, instruction)
        with program.make_context(PROGRAM, list(args), obj=Settings()) as context:
            program.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return _flushed(stop.exit_code)
    except BaseException as error:
        return report(error, as_json=wants_json(args))
    return 0


def _prepare_streams() -> None:
    """Make the standard streams safe to write to.

    Where one was closed, the next file that is opened would take its place: a vault's, perhaps, and
    a message would be written into it.  And a name that the terminal cannot show is no error.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError as error:
        return report(error, as_json=False)
    return code


if __name__ == "__main__":
    main()
