"""What the commands share: how they are declared, the vault they work on, and parameter types.

A command is declared once, with its examples and the shape of its JSON; the help text, the
reference in docs/cli and the tests are all taken from that declaration::

    @command("switch", summary="...", examples={"blockvault switch test": "work on test"})
    @click.argument("name")
    @with_vault
    def run(vault: Vault, name: str) -> None: ...
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from blockvault.errors import NotFound

if TYPE_CHECKING:
    from blockvault.vault import Vault

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc")

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """What holds for the whole command line, whichever command it names."""

    vault: str | None = None


class Command(click.Command):
    """A command that carries its examples and the shape of its ``--json`` output."""

    def __init__(
        self, *args: Any, examples: Mapping[str, str], shape: Mapping[str, str], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.shape = shape

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """After the options: each example as it is typed, and what it does."""
        with formatter.section("Examples"):
            for line, meaning in self.examples.items():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
                formatter.indent()
                formatter.indent()
                formatter.write_text(meaning)
                formatter.dedent()
                formatter.dedent()


class Group(click.Group):
    """Commands that share a first word, such as ``vm``."""


def command(
    name: str, *, examples: Mapping[str, str], shape: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Any]], Command]:
    """Declare a command.  ``shape`` (a dotted path of the JSON → its meaning) adds ``--json``."""

    def declare(function: Callable[..., Any]) -> Command:
        made = click.command(
            name, cls=Command, examples=examples, shape=shape or {}, context_settings=CONTEXT
        )(function)
        made.params += [_json_option(), vault_option()] if shape else [vault_option()]
        return made

    return declare


def vault_option(**extra: Any) -> click.Option:
    """``-V``: accepted before and after the command's name; the later one wins."""

    def remember(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value == "":  # of a variable that is not set, and it meant one vault and no other
            raise click.BadParameter("the directory has no name", ctx, param)
        if value is not None:
            ctx.ensure_object(Settings).vault = value

    return click.Option(
        ["-V", "--vault"],
        metavar="DIR",
        expose_value=False,
        callback=remember,
        type=click.Path(),
        help="The directory that holds the vault.  [default: found from here upward]",
        **extra,
    )


def _json_option() -> click.Option:
    text = "Print JSON, one object per line, for programs."
    return click.Option(["--json", "as_json"], is_flag=True, help=text)


def open_vault() -> Vault:
    """The vault that the command line names, else the one around the working directory.

    A vault that is named must be there: looking further up after a slip of the keyboard would work
    on another vault than the one that was meant.
    """
    from blockvault.vault import Vault

    vault = Vault.open(vault_directory())
    if vault.journals:
        # A server has flushes in its journal that cannot be read yet.
        from blockvault.nbd import control

        control.settle(vault.path)
    return vault


def vault_directory() -> Path:
    """Where that vault is; it is not opened."""
    from blockvault.vault import DIRECTORY, Vault

    named = named_directory()
    if named is None:
        return Vault.discover(Path())
    path = named / DIRECTORY
    if not path.is_dir():
        raise NotFound(f"no vault in {named}", kind="no-vault")
    return path


def named_directory() -> Path | None:
    """The directory with the vault, as the command line or the environment names it."""
    from blockvault.vault import DIRECTORY

    named = click.get_current_context().ensure_object(Settings).vault
    if named is None:
        return None
    path = Path(os.path.abspath(named))
    return path.parent if path.name == DIRECTORY else path


def with_vault(function: Callable[Concatenate[Vault, P], R]) -> Callable[P, R]:
    """Open the vault, hand it over as the first argument, and close it whatever happens."""

    @functools.wraps(function)
    def opened(*args: P.args, **kwargs: P.kwargs) -> R:
        with open_vault() as vault:
            return function(vault, *args, **kwargs)

    return opened


class _Count(click.IntRange):
    """How many of something; what no list can hold stands for all of it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return min(super().convert(value, param, ctx), sys.maxsize)


class _Seconds(click.FloatRange):
    """A span of time; what nothing can wait for is as long as it can.

    nan is within every range, and would never be over.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return min(found, threading.TIMEOUT_MAX)


COUNT, SECONDS = _Count(0), _Seconds(0)

_SIZE = re.compile(r"(\d+)(?:\.(\d+))?\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """A number of bytes: ``4096``, ``4K``, ``1.5GiB``; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise click.BadParameter(f"{text!r} is not a size such as 4096, 64K or 1.5G")
    whole, fraction, unit = match.groups(default="")
    scale = 1 << 10 * " KMGTP".index(unit.upper() or " ")
    parts = 10 ** len(fraction)
    value, rest = divmod(int(whole + fraction) * scale, int(parts))
    if rest and not unit:
        raise click.BadParameter(f"{text!r} is not a whole number of bytes")
    return value


def size_option(*names: str, **settings: Any) -> Callable[[F], F]:
    """An option that takes a number of bytes."""
    return click.option(*names, metavar="SIZE", type=parse_size, **settings)
