"""What the page says of how its figures came about is so of those that it shows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from blockvault.ops import gc
from tests.tools.test_bench_figures import PUBLISHED, facts, part, results
from tools.bench import method, report
from tools.bench.peers.borg import BorgFixed
from tools.bench.peers.restic import Restic
from tools.bench.results import Results, Row
from tools.bench.rows import growth, series, vm

FULL_MEMORY = "the memory that is free is filled with a file"


def test_what_blockvault_leaves_is_told_as_what_others_leave() -> None:
    assert f"up to\n  {100 * gc.LEAVE:.0f} % of it" in method.METHOD
    assert "as all others do" not in method.METHOD


@pytest.mark.parametrize(
    ("commands", "told"),
    [
        ({}, ""),
        ({"borg-fixed": ["borg compact STORE"], "restic": ["restic forget --prune"]}, ""),
        (
            {"borg-fixed": ["borg delete STORE::one", "borg compact --threshold 0 STORE"]},
            "Here `borg compact` was told `--threshold 0`,\n  which leaves nothing",
        ),
        (
            {"restic": ["restic forget --prune --max-unused 0 --keep-tag again"]},
            "Here `restic forget` was told `--max-unused 0`,\n  which leaves nothing",
        ),
    ],
    ids=["not known", "defaults", "borg", "restic"],
)
def test_commands_that_were_told_to_leave_nothing_are_named(
    commands: dict[str, list[str]], told: str
) -> None:
    made = results()
    made.add(series.FORGET, "borg-fixed", 1.0)
    made.commands[series.FORGET.key] = commands
    text = method.page(made)
    assert ("Here " in text) == bool(told)
    assert told in text


def test_the_published_rows_say_what_they_were_measured_with() -> None:
    published = Results.load(PUBLISHED)
    spelled = published.commands[series.FORGET.key]
    text = method.page(published)
    for option, words in method.LEAVES_NOTHING.items():
        assert (words in text) == any(option in " ".join(each) for each in spelled.values())


@pytest.mark.parametrize("kind", [BorgFixed, Restic], ids=lambda kind: kind.name)
def test_peers_collect_by_their_defaults(kind: type[BorgFixed] | type[Restic]) -> None:
    words = [word for each in kind(PUBLISHED).forget(["one"], ["two"]) for word in each.argv]
    assert not {"--threshold", "--max-unused"} & set(words)


@pytest.mark.parametrize(
    ("mode", "when", "filled"),
    [
        ("full", "2026-11-30T10:00:00+00:00", True),
        ("full", "2026-11-28T21:00:00+00:00", True),
        ("full", "2026-11-28T09:00:00+00:00", False),
        ("quick", "2026-11-30T10:00:00+00:00", False),
    ],
)
def test_memory_was_filled_before_full_runs_since_they_do_that(
    mode: str, when: str, filled: bool
) -> None:
    made = results()
    made.facts |= {"mode": mode, "when": when}
    assert (FULL_MEMORY in method.page(made)) == filled


def test_rows_that_were_measured_without_full_memory_are_named() -> None:
    made, older = results(), Results(facts=facts() | {"mode": "full"})
    made.facts |= {"mode": "full", "when": "2026-11-30T10:00:00+00:00"}
    older.add(growth._row("snapshot", 10), "blockvault", 0.1)
    made.merge(older)
    assert f"Before the first row (many snapshots: not so) {FULL_MEMORY}" in method.page(made)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [([0.1, 0.1, 0.1], "By commands blockvault would take some 3,000"), ([], "")],
)
def test_the_clock_of_many_snapshots_is_told_with_what_it_would_leave_of_ours(
    seconds: Sequence[float], said: str
) -> None:
    made = results()
    made.facts["plan"] |= {"grow_limit": 300}
    row = growth._row("snapshot", 10)
    made.leave_out(row, "qcow2-chain", "not run", "305 of 1000 snapshots after 300 s")
    for each in seconds:
        made.add(row, "blockvault", each)
    text = method.page(made)
    assert "each program had 300 s to get from one number of them" in text
    assert ("By commands" in text) == bool(said)
    assert said in text
    assert "each program had" not in method.page(results())


def test_how_much_of_its_memory_a_guest_used_is_told_by_the_figure() -> None:
    made = results()
    assert "Half of it in use" not in method.page(made)
    assert vm.LARGE.memory << 20 == method.LARGE_GUEST
    made.add(vm.Rows.of(vm.LARGE).used, "blockvault", 1.84e9)
    words = vm.LARGE.name.rpartition(", ")[2].capitalize()
    assert f'* "{words}" is 1.84 GB of the guest\'s memory of 4.29 GB: 43 %.' in method.page(made)


def test_commits_stand_with_the_days_on_which_they_were_measured() -> None:
    made, later = part("1/2", 1.0), part("2/2", 2.0)
    other = part("1/1", 1.0, "fedcba")
    other.rows = {"x": Row("x", "g", "X")}
    other.cells = {"x": next(iter(other.cells.values()))}
    later.facts["when"], other.facts["when"] = "2026-11-24T10:00", "2026-11-22T10:00"
    for each in (later, other):
        made.merge(each)
    opening = report.page(made, plots=[], folder="", raw="", progress="").partition("## ")[0]
    assert "with blockvault 0123456789 (2026-11-23, 2026-11-24), fedcba (2026-11-22)." in opening
