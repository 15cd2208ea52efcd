"""Policies as tables: what stays, and why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.errors import BadRequest, Unsupported
from blockvault.model import retention
from blockvault.model.retention import Candidate, Policy

DAY = 86400 * retention.SECOND
HOUR = 3600 * retention.SECOND
NOW = 1 << 60
"""A clock that is ahead of all snapshots, which then does not count."""


def at(*when: int, zone: timezone = UTC) -> int:
    return int(datetime(*when, tzinfo=zone).timestamp()) * retention.SECOND  # type: ignore[misc]


def candidates(*times: int) -> list[Candidate]:
    return [Candidate(bytes([number]), time, number) for number, time in enumerate(times)]


def stays(policy: Policy, *times: int, zone: timezone = UTC) -> list[int]:
    return sorted(oid[0] for oid in retention.kept(policy, candidates(*times), NOW, zone))


HOURS = [at(2026, 1, 1, 0, 30) + n * HOUR // 2 for n in range(8)]
DAYS = [at(2026, 1, 1, 12) + n * DAY for n in range(40)]


def test_last_counts_from_the_newest_whatever_the_order() -> None:
    assert stays(Policy(last=2), *HOURS) == [6, 7]
    assert stays(Policy(last=2), *reversed(HOURS)) == [0, 1]
    assert stays(Policy(last=99), *HOURS) == list(range(8))


def test_of_each_hour_the_newest() -> None:
    # 0:30 | 1:00 1:30 | 2:00 2:30 | 3:00 3:30 | 4:00
    assert stays(Policy(hourly=3), *HOURS) == [4, 6, 7]
    assert stays(Policy(hourly=9), *HOURS) == [0, 2, 4, 6, 7]


def test_within_counts_from_a_clock_that_is_behind_the_newest() -> None:
    times = [DAYS[0], DAYS[1], DAYS[39]]
    for now, expected in ((NOW, [2]), (DAYS[2], [1, 2]), (DAYS[1], [0, 1, 2]), (0, [0, 1, 2])):
        found = retention.kept(Policy(within=DAY), candidates(*times), now, UTC)
        assert sorted(oid[0] for oid in found) == expected


@pytest.mark.parametrize("now", [DAYS[1], DAYS[30], NOW])
def test_what_cannot_be_told_apart_in_time_stays_together(now: int) -> None:
    """Recorded after a clock had been ahead: with the time of the jump, whenever it was."""
    times = [*DAYS[:5], *[DAYS[20]] * 7]
    for policy in (Policy(hourly=1), Policy(daily=1), Policy(yearly=7)):
        found = retention.kept(policy, candidates(*times), now, UTC)
        assert sorted(oid[0] for oid in found) == [5, 6, 7, 8, 9, 10, 11]
    found = retention.kept(Policy(daily=3), candidates(*times), now, UTC)
    assert sorted(oid[0] for oid in found) == [3, 4, *range(5, 12)], "as one day"


def test_hours_without_a_snapshot_do_not_count() -> None:
    assert stays(Policy(daily=3), DAYS[0], DAYS[1], DAYS[20], DAYS[39]) == [1, 2, 3]


def test_days_weeks_months_and_years() -> None:
    assert stays(Policy(daily=2), *DAYS) == [38, 39]
    # 9 February 2026 is a Monday: its week has just begun.
    assert stays(Policy(weekly=2), *DAYS) == [38, 39]
    assert stays(Policy(weekly=3), *DAYS) == [31, 38, 39]
    assert stays(Policy(monthly=2), *DAYS) == [30, 39]
    assert stays(Policy(yearly=2), at(2025, 12, 31, 23), at(2026, 1, 1, 1)) == [0, 1]


def test_a_week_belongs_to_the_year_that_has_its_thursday() -> None:
    assert stays(Policy(weekly=9), at(2025, 12, 31), at(2026, 1, 1)) == [1]


def test_days_are_those_of_the_zone() -> None:
    times = at(2026, 1, 1, 22, 30), at(2026, 1, 1, 23, 30)
    assert stays(Policy(daily=9), *times) == [1]
    assert stays(Policy(daily=9), *times, zone=timezone(timedelta(hours=1))) == [0, 1]


def test_within_counts_from_the_newest_snapshot() -> None:
    assert stays(Policy(within=2 * DAY), *DAYS) == [37, 38, 39]
    assert stays(Policy(within=1), *HOURS) == [7]


def test_rules_add_up_and_are_named() -> None:
    policy = Policy(last=1, daily=2, monthly=1)
    found = retention.kept(policy, candidates(*DAYS), NOW, UTC)
    assert found == {bytes([39]): ["last", "daily", "monthly"], bytes([38]): ["daily"]}


def test_a_policy_that_thins_nothing_keeps_everything() -> None:
    assert stays(Policy(events=0), *DAYS) == list(range(40))
    assert stays(Policy(last=1)) == []


def test_tags() -> None:
    assert Policy().keeps_tag("anything")
    policy = Policy(tags=("v*", "golden"))
    assert [policy.keeps_tag(name) for name in ("v1", "golden", "old/v1", "V1")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not Policy(tags=()).keeps_tag("v1")


policies = st.builds(
    Policy,
    **{name: st.integers(0, 5) for name in ("last", "hourly", "daily", "weekly", "yearly")},
    within=st.integers(0, 1 << 50),
    tags=st.none() | st.lists(st.text(max_size=3), max_size=3).map(tuple),
    events=st.integers(0, 1 << 50),
)


@given(policies)
def test_rules_give_the_policy_back(policy: Policy) -> None:
    rules = policy.rules()
    assert Policy.from_rules(rules) == policy
    assert rules
    assert [name for name, _ in rules] == sorted({name for name, _ in rules})


def test_a_rule_of_a_later_program_is_refused() -> None:
    with pytest.raises(Unsupported, match="lunar"):
        Policy.from_rules([("lunar", 3)])


@given(st.lists(st.integers(0, 1 << 51), max_size=60), policies, st.data())
def test_keeping_again_keeps_the_same(
    times: list[int], policy: Policy, data: st.DataObject
) -> None:
    """A prune of what a prune left takes nothing more, whatever the order of the snapshots."""
    every = candidates(*times)
    shuffled = data.draw(st.permutations(every))
    first = retention.kept(policy, shuffled, NOW, UTC)
    again = retention.kept(policy, [each for each in every if each.id in first], NOW, UTC)
    assert again == first


@pytest.mark.parametrize(
    ("text", "hours"), [("48h", 48), ("30d", 720), ("1d12h", 36), ("2w", 336), ("1y", 8760)]
)
def test_durations(text: str, hours: int) -> None:
    assert retention.parse_duration(text) == hours * HOUR


@pytest.mark.parametrize("text", ["", "48", "h", "3x", "1 d", "-1h", "1.5h", "h3"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(BadRequest):
        retention.parse_duration(text)


@given(st.integers(0, 1 << 40))
def test_durations_are_written_as_they_are_read(seconds: int) -> None:
    time_us = seconds * retention.SECOND
    assert retention.parse_duration(retention.format_duration(time_us)) == time_us
