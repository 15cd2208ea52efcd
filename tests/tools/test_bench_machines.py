"""Two guests that take turns: never both at once, and each begins as often as the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tools.bench import machines


class Fake:
    """A guest that notes when it goes on and stands still."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    @contextmanager
    def running(self) -> Iterator[None]:
        self.notes.append(f"{self.name} goes on")
        yield
        self.notes.append(f"{self.name} stands still")

    def __getattr__(self, step: str) -> Any:
        return lambda *number: self.notes.append(" ".join(map(str, (self.name, step, *number))))


def turn(name: str, what: str) -> list[str]:
    return [f"{name} goes on", f"{name} {what}", f"{name} stands still"]


def test_guests_take_turns_in_each_round_and_one_begins_after_the_other() -> None:
    notes: list[str] = []
    ours, theirs = Fake("ours", notes), Fake("theirs", notes)
    machines.take_turns(3, (ours, ours.snapshot), (theirs, theirs.keep))
    assert notes == [
        *(*turn("ours", "snapshot 0"), *turn("theirs", "keep 0")),
        *(*turn("theirs", "keep 1"), *turn("ours", "snapshot 1")),
        *(*turn("ours", "snapshot 2"), *turn("theirs", "keep 2")),
    ]


@pytest.mark.parametrize(("rounds", "clones", "starts"), [(1, 10, 1), (3, 10, 3), (12, 10, 12)])
def test_all_is_measured_and_clones_beside_starts(rounds: int, clones: int, starts: int) -> None:
    notes: list[str] = []
    ours: Any = Fake("ours", notes)
    theirs: Any = Fake("theirs", notes)
    machines.measure(ours, theirs, rounds)
    for step in ("ours snapshot", "theirs keep", "ours go_back", "theirs go_back"):
        assert sum(note.startswith(f"{step} ") for note in notes) == rounds
    last = notes[notes.index("theirs end") + 1 :]
    assert sum(note.startswith("ours clone") for note in last) == clones
    assert sum(note.startswith("theirs start") for note in last) == starts
    assert last[:2] == ["ours clone 0", "theirs start 0"]
    assert not any("goes on" in note for note in last), "nobody else runs beside one that starts"
