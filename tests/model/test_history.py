"""Ancestry over hand-drawn and random histories."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.model import history
from blockvault.model.snapshot import Snapshot


class Vault:
    """Snapshots by name and by id; counts loads."""

    def __init__(self) -> None:
        self.named: dict[str, Snapshot] = {}
        self.names: dict[bytes, str] = {}
        self.loads: list[str] = []

    def add(self, name: str, *parents: str, time: int | None = None) -> Snapshot:
        snapshot = Snapshot(
            parents=tuple(self.named[parent].id for parent in parents),
            volumes=(),
            message=name,
            time_us=len(self.named) if time is None else time,
            seq=len(self.named),
        )
        self.named[name], self.names[snapshot.id] = snapshot, name
        return snapshot

    def load(self, oid: bytes) -> Snapshot:
        self.loads.append(self.names[oid])
        return self.named[self.names[oid]]

    def ids(self, text: str) -> list[bytes]:
        return [self.named[name].id for name in text]


@pytest.fixture
def vault() -> Vault:
    """a - b - c - f(c, e) - g     and a - d - e."""
    found = Vault()
    for name, parents in [("a", ""), ("b", "a"), ("c", "b"), ("d", "a"), ("e", "d")]:
        found.add(name, *parents)
    found.add("f", "c", "e")
    found.add("g", "f")
    return found


def names(snapshots: object) -> str:
    return "".join(snapshot.message for snapshot in snapshots)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("starts", "expected"), [("g", "gfedcba"), ("c", "cba"), ("ce", "edcba"), ("a", "a"), ("", "")]
)
def test_walk_is_newest_first_and_once(vault: Vault, starts: str, expected: str) -> None:
    assert names(history.walk(vault.load, vault.ids(starts))) == expected
    assert sorted(vault.loads) == sorted(expected)


def test_walk_along_first_parents(vault: Vault) -> None:
    assert names(history.walk(vault.load, vault.ids("g"), first_parent=True)) == "gfcba"


def test_walk_loads_only_what_it_needs(vault: Vault) -> None:
    assert next(history.walk(vault.load, vault.ids("g"))).message == "g"
    assert vault.loads == ["g"]


@pytest.mark.parametrize("steps", range(8))
def test_nth_ancestor_follows_first_parents(vault: Vault, steps: int) -> None:
    found = history.nth_ancestor(vault.load, vault.named["g"], steps)
    assert (found.message if found else None) == ([*"gfcba"] + [None] * 3)[steps]


@pytest.mark.parametrize(("number", "expected"), [(0, "f"), (1, "c"), (2, "e"), (3, None)])
def test_nth_parent(vault: Vault, number: int, expected: str | None) -> None:
    found = history.nth_parent(vault.load, vault.named["f"], number)
    assert (found.message if found else None) == expected


@given(st.integers(0, 1 << 40))
def test_random_histories(seed: int) -> None:
    rng = random.Random(seed)
    vault = Vault()
    letters = [chr(0x100 + n) for n in range(rng.randrange(1, 25))]
    for at, name in enumerate(letters):
        parents = rng.sample(letters[:at], min(at, rng.choice([0, 1, 1, 1, 2, 3])))
        vault.add(name, *parents, time=rng.choice([at, 5, rng.randrange(30)]))
    starts = rng.sample(letters, min(len(letters), rng.randrange(1, 4)))
    ids = [vault.named[name].id for name in starts]
    reach: set[str] = set()
    todo = list(starts)
    while todo:
        name = todo.pop()
        if name not in reach:
            reach.add(name)
            todo += [vault.names[parent] for parent in vault.named[name].parents]
    walked = [snapshot.message for snapshot in history.walk(vault.load, ids)]
    assert sorted(walked) == sorted(reach)


def test_the_nearest_that_are_kept(vault: Vault) -> None:
    def nearest(name: str, kept: str) -> str:
        found = history.Nearest(
            lambda oid: vault.load(oid).parents, lambda oid: vault.names[oid] in kept
        )
        return "".join(vault.names[oid] for oid in found.of(vault.named[name].id))

    assert nearest("g", "gfedcba") == "g"
    assert nearest("g", "ba") == "ba"
    assert nearest("g", "da") == "ad"
    assert nearest("g", "a") == "a"
    assert nearest("g", "") == ""


@pytest.mark.parametrize("merged", [1, 3])
def test_a_line_that_goes_may_be_long(merged: int) -> None:
    """However many ways lead through it, each snapshot is looked at once."""
    asked = []

    def parents(oid: bytes) -> list[bytes]:
        asked.append(oid)
        number = int.from_bytes(oid)
        return [before.to_bytes(4) for before in range(max(0, number - merged), number)]

    nearest = history.Nearest(parents, lambda oid: oid == bytes(4))
    assert nearest.of((10_000).to_bytes(4)) == (bytes(4),)
    assert len(asked) == len(set(asked)) == 10_000
    assert nearest.of((5_000).to_bytes(4)) == (bytes(4),)
    assert len(asked) == 10_000
