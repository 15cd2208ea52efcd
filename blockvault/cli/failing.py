"""Every way in which a command can fail, as one line on stderr and an exit code.

    0        done
    1        ``diff --exit-code``: there is a difference
    2..9     an error of ``blockvault.errors``, each class its own code; 2 for usage, too
    70       an error that was not foreseen
    130      interrupted by Ctrl-C; by another signal: 128 and its number, as a shell has it
    141      the reader of our output went away

No traceback reaches the user; BLOCKVAULT_TRACEBACK=1 shows it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence

import click

from blockvault.cli.signals import Ended
from blockvault.errors import IOFailed, NoSpace, NotFound, VaultError

PROGRAM = "blockvault"
INTERRUPTED, BROKEN_PIPE = 130, 141


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
        from blockvault.cli.output import json_text

        text = json_text({"error": {"kind": kind, "message": message}}, sys.stderr)
    else:
        from blockvault.cli.output import clean

        text = f"{PROGRAM}: {clean(' '.join(message.split()))}"
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
        code = 128 + error.number if isinstance(error, Ended) else INTERRUPTED
        return "interrupted", "interrupted; what was acknowledged is safe", code
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
    if interruption := _behind(error):
        return describe(interruption)
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    hint = "BLOCKVAULT_TRACEBACK=1 shows where"
    return "internal", f"unexpected error, please report it: {text} ({hint})", VaultError.exit_code


def _behind(error: BaseException) -> KeyboardInterrupt | None:
    """The signal that an error comes from: a library that is told to end while it is being loaded
    may make an error of its own of that."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__cause__ or found.__context__
    return found


def _describe_os_error(error: OSError) -> tuple[str, str, int]:
    where = os.fsdecode(error.filename) if error.filename else "input or output"
    message = f"{where}: {(error.strerror or str(error)).lower()}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace.kind, message, NoSpace.exit_code
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound.kind, message, NotFound.exit_code
    return IOFailed.kind, message, IOFailed.exit_code


def _close_stdout() -> None:
    """Point stdout nowhere, or the interpreter's last flush would complain again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
