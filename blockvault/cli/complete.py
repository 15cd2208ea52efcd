"""Shell completion: what to offer after a TAB, and how the shells ask for it.

The shell runs ``blockvault`` with ``_BLOCKVAULT_COMPLETE`` set; ``answer`` replies with one
candidate per line.  Completing must never print an error or hang: anything that goes wrong (no
vault, a damaged one) offers nothing.

Bash splits words at ``:`` and ``@``, which revisions are full of, and then replaces only the part
behind the last of them, or all that follows an open quote.  So for bash the line is split here, and
candidates lose the part in front.  Bash also takes them as they are, so they are quoted here: names
may hold spaces and all that a shell would obey.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from blockvault.cli.common import open_vault
from blockvault.errors import VaultError

if TYPE_CHECKING:
    from blockvault.vault import Vault

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' type value
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    """Bash, told about words that hold ``:`` and ``@``."""

    source_template = _BASH

    def source(self) -> str:
        return self.source_template % self.source_vars()

    def complete(self) -> str:
        line = _line()
        quote, inside = _open_quote(line)
        args, word = _words(line.removesuffix(quote + inside))
        if quote:
            hidden = len(word)
            word += _unquoted(inside, quote)
        else:
            breaks = os.environ.get("COMP_WORDBREAKS", "")
            hidden = max((word.rfind(mark) + 1 for mark in ":@=" if mark in breaks), default=0)
        items = self.get_completions(args, word)
        return "\n".join(f"{item.type},{_quoted(item.value[hidden:], quote)}" for item in items)


def _line() -> str:
    """The line as far as the cursor."""
    line = os.environ.get("COMP_LINE", "").encode()
    return line[: int(os.environ.get("COMP_POINT", len(line)))].decode(errors="replace")


def _words(line: str) -> tuple[list[str], str]:
    """The program's arguments, and the word that the line ends in."""
    # One letter more shows which that is, though it be empty or end in a space.
    words = split_arg_string(line + "x")[1:]
    return words[:-1], words[-1][:-1] if words else ""


_QUOTES = re.compile(r"""(?:[^\\'"]|\\.?|'[^']*'|"(?:[^\\"]|\\.)*")*(?:(['"])(.*))?""", re.DOTALL)
"""What is quoted as a whole or not at all, and behind it perhaps a quote that is open."""


def _open_quote(line: str) -> tuple[str, str]:
    """The quote that is open at the end of a line, and what follows it; nothing if none is."""
    found = _QUOTES.fullmatch(line)
    return (found[1], found[2]) if found and found[1] else ("", "")


_SPECIAL = r'[\\"$`]'
"""What a backslash stands before in double quotes."""


def _unquoted(inside: str, quote: str) -> str:
    """What has been typed behind an open quote."""
    return re.sub(rf"\\({_SPECIAL})", r"\1", inside) if quote == '"' else inside


def _quoted(value: str, quote: str) -> str:
    """A value as bash takes it for one word, behind an open ``quote`` or none."""
    if quote == "'":
        return value.replace("'", r"'\''")
    special = _SPECIAL if quote else r"[^\w@%+=:,./-]"
    return re.sub(special, r"\\\g<0>", value)


def answer(program: click.Command, variable: str, instruction: str) -> int:
    """Answer one request of a shell: ``bash_source``, ``zsh_complete`` and the like."""
    add_completion_class(_Bash)
    shell, _, action = instruction.partition("_")
    kind = get_completion_class(shell)
    if kind is None or action not in ("source", "complete"):
        return 1
    completer = kind(program, {}, program.name or "", variable)
    click.echo(completer.source() if action == "source" else completer.complete())
    return 0


def script(program: click.Command, variable: str, shell: str) -> str:
    """The script that a user evaluates in a shell once."""
    add_completion_class(_Bash)
    kind = get_completion_class(shell)
    assert kind is not None, "the command offers only shells that click knows"
    return kind(program, {}, program.name or "", variable).source()


def _completer(candidates: Callable[[Vault, str], Iterable[str]]) -> Completer:
    """Make a completer of a function from vault and unfinished word to candidates."""

    def complete(
        ctx: click.Context, _param: click.Parameter, word: str
    ) -> list[CompletionItem[str]]:
        try:
            with ctx, open_vault() as vault:
                return [CompletionItem(c) for c in candidates(vault, word) if c.startswith(word)]
        except (VaultError, OSError):
            return []

    return complete


def _branches(vault: Vault, _word: str) -> list[str]:
    return [branch.name for branch in vault.branches()]


def _tags(vault: Vault, _word: str) -> list[str]:
    return [tag.name for tag in vault.tags()]


def _revisions(vault: Vault, _word: str) -> list[str]:
    return ["HEAD", *_branches(vault, ""), *_tags(vault, "")]


def _volumes_of(vault: Vault, word: str) -> list[str]:
    """``REV:`` is followed by the volumes of that revision."""
    rev, colon, _ = word.rpartition(":")
    if not colon:
        return [f"{name}:" for name in _revisions(vault, word)]
    return [f"{rev}:{volume.name}" for volume in vault.resolve(rev).volumes]


branches = _completer(_branches)
tags = _completer(_tags)
revisions = _completer(_revisions)
revision_volumes = _completer(_volumes_of)
