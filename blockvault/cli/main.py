"""The entry point: find the command, run it, and end with one clear line and an exit code.

Start-up is most of what a short command costs, so nothing is imported before it is needed: the
table below holds each command's summary, and its module is loaded only when it runs.  Whatever
goes wrong ends in ``report``: no traceback ever reaches the user (BLOCKVAULT_TRACEBACK=1 shows it).

    exit code 0       done
              1       ``diff --exit-code``, ``verify``: there is a difference or damage to report
              2..9    an error of ``blockvault.errors``, each kind its own code
              70      an error that was not foreseen
              130/141 interrupted by Ctrl-C / the reader of our output went away
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from blockvault.cli.common import CONTEXT, Settings, vault_option
from blockvault.errors import IOFailed, NoSpace, NotFound, VaultError

PROGRAM = "blockvault"
COMPLETE_VAR = "_BLOCKVAULT_COMPLETE"
INTERRUPTED, BROKEN_PIPE = 130, 141

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
        "stats": "Show how much space the vault takes, and for what.",
        "verify": "Check that everything stored is whole.",
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
        module = import_module(f"blockvault.cli.{ALIASES.get(cmd_name, cmd_name)}_cmd")
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
    """The installed program."""
    sys.exit(run(sys.argv[1:]))


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


def wants_json(args: Sequence[str]) -> bool:
    """True if errors are to be JSON too; asked of the raw arguments, they may not have parsed."""
    options = args[: args.index("--")] if "--" in args else args
    return "--json" in options


def report(error: BaseException, *, as_json: bool) -> int:
    """Tell what went wrong in one line on stderr; return the exit code."""
    if os.environ.get("BLOCKVAULT_TRACEBACK"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, BrokenPipeError):
        _close_stdout()
        return BROKEN_PIPE
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    kind, message, code = describe(error)
    if as_json:
        import json

        text = json.dumps({"error": {"kind": kind, "message": message}}, ensure_ascii=False)
    else:
        text = f"{PROGRAM}: " + " ".join(message.split())
    try:
        sys.stdout.flush()
    except OSError:
        _close_stdout()
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
    return code


def describe(error: BaseException) -> tuple[str, str, int]:
    """The stable kind, the message and the exit code of any exception."""
    if isinstance(error, VaultError):
        return error.reason, error.message, error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", "interrupted; what was acknowledged is safe", INTERRUPTED
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else PROGRAM
        message = error.format_message().rstrip(".")
        return "usage", f"{message[:1].lower()}{message[1:]}; see '{path} --help'", 2
    if isinstance(error, click.ClickException):
        return "usage", error.format_message(), 2
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if isinstance(error, MemoryError):
        return "no-memory", "out of memory; what was acknowledged is safe", VaultError.exit_code
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    hint = "BLOCKVAULT_TRACEBACK=1 shows where"
    return "internal", f"unexpected error, please report it: {text} ({hint})", VaultError.exit_code


def _describe_os_error(error: OSError) -> tuple[str, str, int]:
    where = os.fsdecode(error.filename) if error.filename else "input or output"
    message = f"{where}: {(error.strerror or str(error)).lower()}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace.kind, message, NoSpace.exit_code
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound.kind, message, NotFound.exit_code
    return IOFailed.kind, message, IOFailed.exit_code


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


def _close_stdout() -> None:
    """Point stdout nowhere, or the interpreter's last flush would complain again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    main()
