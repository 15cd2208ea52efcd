"""What a verify found, in a form for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockvault.errors import Damaged
from blockvault.ops.damage import Touched

Id = bytes


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; ``kind`` is stable, ``message`` is for people.

    ``object`` is the id of the object that is lost or damaged, if the problem is one object.
    """

    kind: str
    message: str
    object: bytes | None = None


def hidden(what: str) -> Problem:
    """Something stands where a walk meets it, but is not found by its number."""
    message = (
        f"the {what} is there, but not found by its number: a key above it is damaged; "
        "'blockvault compact' writes the tables anew"
    )
    return Problem("key-damaged", message)


@dataclass(slots=True)
class Report:
    """What was looked at and what was found; ``touched`` is what lost objects would have held."""

    events: int = 0
    objects: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    touched: list[Touched] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def lost(self) -> frozenset[Id]:
        """Objects that cannot be read as they were stored."""
        return frozenset(each.object for each in self.problems if each.object is not None)

    def found(self, error: Damaged) -> None:
        self.problems.append(Problem(error.reason, error.message))
