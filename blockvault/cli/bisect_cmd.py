"""``blockvault bisect``: find the snapshot, the flush or the write that broke something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blockvault.cli import complete, output
from blockvault.cli.common import CONTEXT, Command, Group, command, vault_option, with_vault

if TYPE_CHECKING:
    from blockvault.ops.bisect import Bisection
    from blockvault.vault import Vault

SHAPE = {
    "volume": "the volume that is looked at",
    "exact": "whether the search goes on to single writes",
    "good": "the state that was good when it began",
    "bad": "the state that was bad",
    "judged[].revision": "a state that was judged since",
    "judged[].verdict": "good, bad or skip",
    "next.level": "snapshot, barrier or event; 'next' is null when the search has ended",
    "next.revision": "the state to judge next",
    "next.left": "states of this level that may be it",
    "next.steps": "how many of them to judge, about",
    "found.level": "snapshot, barrier or event; 'found' is null until the search has ended",
    "found.good": "the last state that is good",
    "found.bad": "the first one that is bad, unless it is one of the suspects",
    "found.suspects[]": "states between them that were skipped",
}


@click.group(
    "bisect", cls=Group, no_args_is_help=True, context_settings=CONTEXT, params=[vault_option()]
)
def run() -> None:
    """Find the snapshot, flush or write after which something fails.

    State one moment of a branch that is good and a later one that is bad.  Binary search goes
    through the snapshots between them, then through the flushes between two snapshots, and with
    --exact through the single writes between two flushes.
    """


@command(
    "start",
    examples={
        "blockvault bisect start main~5 main": "Between five snapshots ago and now.",
        "blockvault bisect start 'main@{1 hour ago}' main --exact": "Down to the very write.",
    },
    shape=SHAPE,
)
@click.argument("good", metavar="GOOD", shell_complete=complete.revisions)
@click.argument("bad", metavar="BAD", shell_complete=complete.revisions)
@click.option(
    "-b",
    "--branch",
    shell_complete=complete.branches,
    help="The branch whose past to search.  [default: that of BAD]",
)
@click.option("--volume", metavar="NAME", help="The volume to look at.  [default: the only one]")
@click.option("--exact", is_flag=True, help="Go on from flushes to single writes.")
@with_vault
def start(
    vault: Vault,
    good: str,
    bad: str,
    branch: str | None,
    volume: str | None,
    exact: bool,
    as_json: bool,
) -> None:
    """Begin a search between a good and a later, bad revision.

    Both are states of one branch, or of branches it came from.  An earlier search is forgotten.
    """
    from blockvault.cli import bisecting
    from blockvault.ops import bisect

    made = bisect.start(vault, good, bad, branch=branch, volume=volume, exact=exact)
    bisecting.show(vault, made, as_json=as_json)


@command(
    "run",
    examples={
        "blockvault bisect run sh -c 'e2fsck -p -E journal_only {file} && e2fsck -fn {file}'": (
            "Which flush broke the file system, what its journal makes good aside?"
        ),
        "blockvault bisect run sh -c 'qemu-img info {nbd} && ./check {nbd}'": (
            "The states over NBD, nothing is copied."
        ),
    },
    shape=SHAPE,
)
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@with_vault
def run_command(vault: Vault, words: tuple[str, ...], as_json: bool) -> None:
    """Judge states with a command until the first bad one is found.

    In COMMAND, {file} stands for a raw file that holds the state, {nbd} for the URI of a read-only
    NBD export of it.  COMMAND says by its exit code what the state is: 0 good, 125 cannot tell,
    any other below 128 bad; from 128 on, or killed by a signal, it stops the search, which goes on
    when run again.  No shell is involved: use sh -c for one.  The two ends are tried first.

    The file is one and the same, rewritten where states differ; what COMMAND writes to it is gone
    with the next state.  With --json, what COMMAND prints goes to standard error.
    """
    from blockvault.cli import bisecting
    from blockvault.ops import bisect

    bisection = bisect.load(vault)
    with bisecting.Judge(vault, bisection, words, aside=as_json) as judge:
        bisecting.run(vault, bisection, judge, as_json=as_json)


# What follows COMMAND is its own, options too.
run_command.allow_interspersed_args = False


def _marker(verdict: str, summary: str, example: str) -> Command:
    """The command ``bisect good``, and its like."""

    @command(
        verdict,
        examples={
            f"blockvault bisect {verdict}": example,
            f"blockvault bisect {verdict} main~3": "Another state than the one proposed.",
        },
        shape=SHAPE,
    )
    @click.argument("revision", metavar="[REV]", required=False, shell_complete=complete.revisions)
    @with_vault
    def mark(vault: Vault, revision: str | None, as_json: bool) -> None:
        from blockvault.cli import bisecting
        from blockvault.errors import BadRequest
        from blockvault.model.bisect import Verdict
        from blockvault.ops import bisect

        bisection = bisect.load(vault)
        if revision is not None:
            seq = bisect.locate(vault, bisection, revision)
        else:
            proposed = bisect.step(vault, bisection)
            if isinstance(proposed, bisect.Found):
                raise BadRequest("the search has ended; 'bisect log' shows it")
            seq = proposed.seq
        marked = bisect.mark(vault, bisection, seq, Verdict(verdict))
        bisecting.show(vault, marked, as_json=as_json)

    mark.help = (
        f"{summary}\n\nWithout REV: the state that was proposed last.  Prints what to look at next."
    )
    return mark


@command(
    "log",
    examples={"blockvault bisect log": "What is known so far, and what to look at next."},
    shape=SHAPE,
)
@with_vault
def log(vault: Vault, as_json: bool) -> None:
    """Show the search so far."""
    from blockvault.cli import bisecting
    from blockvault.ops import bisect

    bisection = bisect.load(vault)
    if not as_json:
        _known(vault, bisection)
    bisecting.show(vault, bisection, as_json=as_json)


def _known(vault: Vault, bisection: Bisection) -> None:
    from blockvault.cli import bisecting
    from blockvault.model.bisect import Verdict
    from blockvault.ops import bisect

    for seq, verdict in ((bisection.good, Verdict.GOOD), (bisection.bad, Verdict.BAD)):
        name = bisect.revision(vault, bisection, seq)
        output.write(f"{verdict:4} {name}  (stated)")
    for seq, verdict in bisection.marks:
        bisecting.tell(vault, bisection, seq, verdict)


@command("reset", examples={"blockvault bisect reset": "Forget the search."})
@with_vault
def reset(vault: Vault) -> None:
    """Forget the search."""
    from blockvault.ops import bisect

    bisect.reset(vault.path)


for _each in (
    start,
    run_command,
    _marker("good", "State that something still works.", "It works there."),
    _marker("bad", "State that something fails.", "It fails there."),
    _marker("skip", "State that it cannot be told.", "It cannot be tried there."),
    log,
    reset,
):
    run.add_command(_each)
