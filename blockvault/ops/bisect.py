"""Which state of a branch is the first bad one: the search, and its file.

What can be judged stands in ``points``, from snapshots to single events.  So a search through
millions of events reads a few records of the log.  It is kept in the vault's directory as
``bisect.json`` and goes on where it was left.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blockvault import files
from blockvault.errors import BadRequest, IOFailed, NotFound
from blockvault.model import projections
from blockvault.model.bisect import Search, Verdict
from blockvault.ops import points
from blockvault.store import scratch

if TYPE_CHECKING:
    from blockvault.ops.points import Stretch
    from blockvault.ops.positions import Position
    from blockvault.vault import Vault

FILE_NAME = "bisect.json"
VERSION = 1
STATES, SOCKETS = "bisect-", "blockvault-bisect-"  # begin the names of directories


@dataclass(frozen=True, slots=True)
class Bisection:
    """A search on the line of ``branch``; ``good`` and ``bad`` are its ends as they were given."""

    branch: int
    volume: str
    exact: bool
    good: int
    bad: int
    marks: tuple[tuple[int, Verdict], ...] = ()

    @property
    def search(self) -> Search:
        """What the ends and all marks tell."""
        known = Search(self.good, self.bad)
        for point, verdict in self.marks:
            known = known.marked(point, verdict)
        return known

    @property
    def untried_ends(self) -> list[tuple[int, Verdict]]:
        """Ends that were stated, but not tried yet."""
        ends = [(self.good, Verdict.GOOD), (self.bad, Verdict.BAD)]
        return [end for end in ends if end not in self.marks]


class Step(NamedTuple):
    """Judge ``seq``, one of ``left`` points of a ``level``: snapshot, barrier or event."""

    level: str
    seq: int
    left: int


class Found(NamedTuple):
    """``bad`` is the first bad point of the finest level, unless it is one of ``suspects``, points
    between ``good`` and ``bad`` that were skipped.
    """

    level: str
    good: int
    bad: int
    suspects: tuple[int, ...]


def start(
    vault: Vault,
    good: str,
    bad: str,
    *,
    branch: str | None = None,
    volume: str | None = None,
    exact: bool = False,
) -> Bisection:
    """Begin a search between two revisions of one line, in place of any earlier one.

    The line is that of ``branch``, else of the branch of ``bad``.
    """
    first, last = (vault.resolve(text, exact=exact) for text in (good, bad))
    if branch is None and last.name is None:
        raise BadRequest(f"'{bad}' is of no branch that has a name: name one")
    chosen = vault.branch(branch or last.name)
    name = last.volume(volume, "with --volume").name
    first.volume(name)
    made = Bisection(chosen.id, name, exact, first.seq, last.seq)
    for end in (first, last):
        if not _on(points.line(vault, made.branch), end):
            raise BadRequest(f"'{end.text}' is no state that '{chosen.name}' came through")
    made.search  # noqa: B018 - refuses ends in the wrong order
    save(vault.path, made)
    return made


def mark(vault: Vault, bisection: Bisection, seq: int, verdict: Verdict) -> Bisection:
    """Note a verdict; ``BadRequest`` if it contradicts what is known."""
    made = replace(bisection, marks=(*bisection.marks, (seq, verdict)))
    made.search  # noqa: B018 - refuses contradictions
    save(vault.path, made)
    return made


def locate(vault: Vault, bisection: Bisection, text: str) -> int:
    """The point that a revision names on the line of the search."""
    position = vault.resolve(text, exact=bisection.exact)
    if not _on(points.line(vault, bisection.branch), position):
        raise BadRequest(f"'{text}' is not on the line that is searched")
    return position.seq


def revision(vault: Vault, bisection: Bisection, seq: int) -> str:
    """A point as people and servers name it."""
    return f"{_name(vault, bisection)}@{{#{seq}}}"


def _name(vault: Vault, bisection: Bisection) -> str:
    """The name of the branch that is searched; ``NotFound`` if it was deleted.

    Points go by that name, and another branch may have it by now.
    """
    with vault.read() as reader:
        if projections.has_branch(reader, bisection.branch):
            row = projections.get_branch(reader, bisection.branch)
            if not row.deleted:
                return row.name
    raise NotFound(
        "the branch that is searched was deleted: 'blockvault branch --restore' may bring it back, "
        "'blockvault bisect reset' forgets the search",
        kind="no-branch",
    )


def position(vault: Vault, bisection: Bisection, seq: int) -> Position:
    """The state at a point."""
    return vault.resolve(revision(vault, bisection, seq), exact=True)


def step(vault: Vault, bisection: Bisection) -> Step | Found:
    """What to judge next, or the answer."""
    search = bisection.search
    for level, lister in points.LEVELS if bisection.exact else points.LEVELS[:-2]:
        known = search.within(_points(vault, bisection, search, lister))
        chosen = search.next(known)
        if chosen is not None:
            return Step(level, chosen, len(search.untried(known)))
    # Those of all levels: the finest lists nothing before the place where a prune cut the branch.
    suspects = tuple(search.within(search.skipped))
    return Found("event" if bisection.exact else "barrier", search.good, search.bad, suspects)


def _on(stretches: list[Stretch], place: Position) -> bool:
    return any(place.branch == part.branch and place.seq <= part.last for part in stretches)


def _points(vault: Vault, bisection: Bisection, search: Search, lister: points.Lister) -> list[int]:
    found: list[int] = []
    for branch, last in points.line(vault, bisection.branch):
        found += lister(vault, branch, search.good, min(search.bad, last + 1))
    return found


# -- the file ----------------------------------------------------------------------------------


def save(directory: Path, bisection: Bisection) -> None:
    """Write the search down, all or nothing."""
    path = directory / FILE_NAME
    text = json.dumps({"version": VERSION, **asdict(bisection)}) + "\n"
    try:
        files.replace(path, text.encode(), alone=True)
    except OSError as error:
        raise IOFailed(f"{path} cannot be written: {error.strerror}") from None


def load(vault: Vault) -> Bisection:
    """The search that was begun; ``NotFound`` if there is none, or its branch was deleted."""
    found = _read(vault.path / FILE_NAME)
    _name(vault, found)
    return found


def _read(path: Path) -> Bisection:
    try:
        value = json.loads(path.read_text())
        if value.pop("version") != VERSION:
            raise ValueError("another version")
        return _from_json(value)
    except FileNotFoundError:
        raise NotFound(
            "no bisection is under way; 'blockvault bisect start GOOD BAD' begins one",
            kind="no-bisection",
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadRequest(
            f"{path} cannot be read ({error}); 'blockvault bisect reset' removes it"
        ) from None


def _from_json(value: dict[str, Any]) -> Bisection:
    marks = tuple((int(seq), Verdict(verdict)) for seq, verdict in value["marks"])
    return Bisection(
        int(value["branch"]),
        str(value["volume"]),
        bool(value["exact"]),
        int(value["good"]),
        int(value["bad"]),
        marks,
    )


def reset(directory: Path) -> None:
    """Forget the search, if there is one."""
    (directory / FILE_NAME).unlink(missing_ok=True)
    clean(directory)


# -- while states are judged -------------------------------------------------------------------


def state_folder(directory: Path) -> AbstractContextManager[Path]:
    """A directory for a state as a file.

    It is beside the vault's data, not in /tmp: a disk may be larger than the memory.
    """
    return scratch.folder(directory, STATES)


def socket_folder() -> AbstractContextManager[Path]:
    """A directory for a socket, not in the vault's: clients are held to 107 bytes of path."""
    return scratch.folder(Path(tempfile.gettempdir()), SOCKETS)


def clean(directory: Path) -> list[Path]:
    """Remove both where a killed process left them; return what others have in the directory."""
    scratch.clean(Path(tempfile.gettempdir()), SOCKETS)
    return scratch.clean(directory, STATES)
