"""Judging states with a command, for ``bisect run``, and what all of ``bisect`` prints."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blockvault.cli import output
from blockvault.errors import Conflict, NotFound, ToolFailed
from blockvault.model.bisect import Verdict, steps
from blockvault.ops import bisect, points
from blockvault.ops.bisect import Bisection, Found, Step

if TYPE_CHECKING:
    from blockvault.ops.statefile import StateFile
    from blockvault.vault import Vault

FILE, NBD = "{file}", "{nbd}"
_SKIP, _STOP = 125, 128
_STDERR = 2
_SHOWN = 20  # events that are listed of those that broke it


class Judge:
    """Runs a command on one state after another; a context, for what it serves and writes.

    ``aside``: what the command prints goes to stderr, for what we print is JSON.
    """

    def __init__(
        self, vault: Vault, bisection: Bisection, words: Sequence[str], *, aside: bool = False
    ) -> None:
        if not any(place in word for word in words for place in (FILE, NBD)):
            raise click.UsageError(f"the command gets the state as {FILE} or {NBD}: say where")
        self._vault = vault
        self._bisection = bisection
        self._words = words
        self._stdout = _STDERR if aside else None
        self._stack = ExitStack()
        self._file: StateFile | None = None
        self._socket: Path | None = None

    def __enter__(self) -> Judge:
        bisect.clean(self._vault.path)
        with self._stack:
            if any(FILE in word for word in self._words):
                from blockvault.ops.statefile import StateFile

                folder = self._stack.enter_context(bisect.state_folder(self._vault.path))
                self._file = StateFile(self._vault, folder / "state.raw")
            if any(NBD in word for word in self._words):
                self._serve()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _serve(self) -> None:
        """One server offers every state by name."""
        from blockvault.nbd.exports import Exports
        from blockvault.nbd.server import Server
        from blockvault.nbd.volumes import VaultCatalogue

        self._socket = self._stack.enter_context(bisect.socket_folder()) / "nbd.sock"
        catalogue = VaultCatalogue(self._vault, {}, exact=True)
        self._stack.callback(catalogue.close)
        server = Server(Exports(catalogue))
        self._stack.callback(server.stop)
        server.listen_unix(self._socket)

    def __call__(self, seq: int) -> Verdict:
        """What the command says of a state; a state that was pruned cannot be judged."""
        from blockvault.ops.reading import open_device

        try:
            with self._vault.guard():
                position = bisect.position(self._vault, self._bisection, seq)
                # Open while the command runs, so that no collection takes the state from it.
                device = open_device(self._vault, position, self._bisection.volume)
        except NotFound as error:
            if error.reason not in ("pruned", "no-volume"):
                raise
            return Verdict.SKIP
        if self._file is not None:
            self._file.show(device)
        return self._verdict(self._command(seq))

    def _command(self, seq: int) -> list[str]:
        words = list(self._words)
        if self._file is not None:
            words = [word.replace(FILE, str(self._file.path)) for word in words]
        if self._socket is not None:
            from blockvault.nbd.attach import Address

            name = bisect.revision(self._vault, self._bisection, seq)
            uri = Address(path=self._socket).uri(f"{name}/{self._bisection.volume}")
            words = [word.replace(NBD, uri) for word in words]
        return words

    def _verdict(self, words: Sequence[str]) -> Verdict:
        output.flush()
        try:
            code = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=self._stdout, check=False
            ).returncode
        except OSError as error:
            raise ToolFailed(f"{words[0]} cannot be run: {error.strerror}") from None
        if code < 0 or code >= _STOP:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            raise ToolFailed(f"{words[0]} {how}; 'bisect run' goes on from here when run again")
        if code == _SKIP:
            return Verdict.SKIP
        return Verdict.BAD if code else Verdict.GOOD


def run(vault: Vault, bisection: Bisection, judge: Judge, *, as_json: bool = False) -> None:
    """Judge until the answer is known; JSON tells only that."""

    def told(seq: int, step: Step | None = None) -> Verdict:
        verdict = judge(seq)
        if not as_json:
            tell(vault, bisection, seq, verdict, step)
        return verdict

    ends = bisection.untried_ends
    for seq, stated in ends:
        bisect.position(vault, bisection, seq)  # if it was pruned, that is no verdict
        verdict = told(seq)
        if verdict is not stated:
            name = bisect.revision(vault, bisection, seq)
            raise Conflict(
                f"{name} was stated to be {stated}, but the command says {verdict}: "
                "give other ends, or another command",
                kind="bisect-ends",
            )
    # Both at once: a command that is wrong at one end is to be tried at both when it is mended.
    for seq, stated in ends:
        bisection = bisect.mark(vault, bisection, seq, stated)
    while isinstance(now := bisect.step(vault, bisection), Step):
        bisection = bisect.mark(vault, bisection, now.seq, told(now.seq, now))
    show(vault, bisection, as_json=as_json)


def tell(
    vault: Vault, bisection: Bisection, seq: int, verdict: Verdict, step: Step | None = None
) -> None:
    """One line about one judged point."""
    level = f"  ({step.level}, 1 of {step.left})" if step else ""
    output.write(f"{verdict:4} {bisect.revision(vault, bisection, seq)}{level}")


def show(vault: Vault, bisection: Bisection, *, as_json: bool = False) -> None:
    """What to judge next, or the answer; as JSON with all that is known."""
    now = bisect.step(vault, bisection)
    if as_json:
        output.write_json(_json(vault, bisection, now))
        return
    if isinstance(now, Found):
        answer(vault, bisection, now)
        return
    name = bisect.revision(vault, bisection, now.seq)
    left = output.plural(now.left, now.level)
    output.write(
        f"next: {now.level} {name}, volume {bisection.volume}"
        f"  ({left} left, about {output.plural(steps(now.left), 'step')})"
    )


def _json(vault: Vault, bisection: Bisection, now: Step | Found) -> dict[str, Any]:
    def name(seq: int) -> str:
        return bisect.revision(vault, bisection, seq)

    proposed: dict[str, Any] | None = None
    found: dict[str, Any] | None = None
    if isinstance(now, Step):
        proposed = {"level": now.level, "revision": name(now.seq)}
        proposed |= {"left": now.left, "steps": steps(now.left)}
    else:
        found = {"level": now.level, "good": name(now.good), "bad": name(now.bad)}
        found |= {"suspects": [name(seq) for seq in now.suspects]}
    return {
        "volume": bisection.volume,
        "exact": bisection.exact,
        "good": name(bisection.good),
        "bad": name(bisection.bad),
        "judged": [{"revision": name(seq), "verdict": str(v)} for seq, v in bisection.marks],
        "next": proposed,
        "found": found,
    }


def answer(vault: Vault, bisection: Bisection, found: Found) -> None:
    """The first bad point, and what happened between the last good one and it."""
    good, bad = (bisect.revision(vault, bisection, seq) for seq in (found.good, found.bad))
    if found.suspects:
        places = ", ".join(f"#{seq}" for seq in (*found.suspects, found.bad))
        output.write(f"the first bad {found.level} is one of {places}; the others were skipped")
    else:
        output.write(f"{bad} is the first bad {found.level}")
    output.write(f"{good} is still good; since then:")
    _events(vault, bisection, found)


def _events(vault: Vault, bisection: Bisection, found: Found) -> None:
    from blockvault.cli import describe

    names = describe.branch_names(vault)
    line = {part.branch for part in points.line(vault, bisection.branch)}
    logged = (
        each
        for each in vault.events(since=found.good + 1, until=found.bad)
        if getattr(each.event, "branch", each.seq) in line
    )
    for each in islice(logged, _SHOWN):
        words = (describe.kind(each.event), describe.detail(each.event, names))
        when = output.precise_time(each.time_us)
        output.write(" ".join([f"  #{each.seq}", when, *words]).rstrip())
    if next(logged, None) is not None:
        output.write("  and more")
