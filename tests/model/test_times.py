"""Times as a table, in UTC and in a zone with daylight saving."""

from __future__ import annotations

import calendar
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.errors import BadRequest
from blockvault.model.times import parse_time

EAST = timezone(timedelta(hours=5, minutes=30))


class Berlin(tzinfo):
    """An hour east of UTC, two from April to October: the real rules, roughly."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1) + self.dst(moment)

    def dst(self, moment: datetime | None) -> timedelta:
        assert moment is not None
        return timedelta(hours=1 if 4 <= moment.month <= 10 else 0)

    def tzname(self, moment: datetime | None) -> str:
        return "Berlin"


NOW = datetime(2026, 11, 23, 10, 0, 5, 250_000, tzinfo=UTC)


def us(moment: datetime) -> int:
    return calendar.timegm(moment.utctimetuple()) * 1_000_000 + moment.microsecond


def at(*fields: int, zone: tzinfo = UTC) -> int:
    return us(datetime(*fields, tzinfo=zone))  # type: ignore[misc]


def ago(**delta: int) -> int:
    return us(NOW - timedelta(**delta))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23T10:00:05.25Z", us(NOW)),
        ("2026-11-23t10:00:05.250000z", us(NOW)),
        ("2026-11-23T10:00:05,25", us(NOW)),
        ("2026-11-23 10:00:05", at(2026, 11, 23, 10, 0, 5)),
        ("2026-11-23 10:00", at(2026, 11, 23, 10)),
        (" 2026-11-23 ", at(2026, 11, 23)),
        ("2026-11-23T10:00+05:30", at(2026, 11, 23, 10, zone=EAST)),
        ("2026-11-23 10:00 +0530", at(2026, 11, 23, 10, zone=EAST)),
        ("2026-11-23T10:00:00-03", at(2026, 11, 23, 13)),
        ("09:30", at(2026, 11, 23, 9, 30)),
        ("9:30:01", at(2026, 11, 23, 9, 30, 1)),
        ("10:00:06", at(2026, 11, 22, 10, 0, 6)),
        ("now", us(NOW)),
        ("Today", at(2026, 11, 23)),
        ("midnight", at(2026, 11, 23)),
        ("yesterday", ago(days=1)),
        ("1 second ago", ago(seconds=1)),
        ("90s ago", ago(seconds=90)),
        ("10 minutes ago", ago(minutes=10)),
        ("10.minutes.ago", ago(minutes=10)),
        ("10min ago", ago(minutes=10)),
        ("5 m ago", ago(minutes=5)),
        ("an hour ago", ago(hours=1)),
        ("two hours ago", ago(hours=2)),
        ("ten days ago", ago(days=10)),
        ("2 days ago", ago(days=2)),
        ("1 day, 3 hours ago", ago(days=1, hours=3)),
        ("1h30m ago", ago(hours=1, minutes=30)),
        ("3 Weeks Ago", ago(weeks=3)),
        ("1 month ago", us(NOW.replace(month=10))),
        ("11 months ago", us(NOW.replace(year=2025, month=12))),
        ("1 year ago", us(NOW.replace(year=2025))),
        ("1 year 1 day ago", us(NOW.replace(year=2025) - timedelta(days=1))),
        ("0 seconds ago", us(NOW)),
        ("@1795428005", at(2026, 11, 23, 10, 0, 5)),
        ("@1795428005.25", us(NOW)),
        ("1969-12-31", 0),
        ("1000 years ago", 0),
        ("999999999999 weeks ago", 0),
    ],
)
def test_times_in_utc(text: str, expected: int) -> None:
    assert parse_time(text, us(NOW), UTC) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "soon", "ago", "minutes ago", "10 ago", "10 minutes", "ten", "last", "5", "0"),
        *("5 parsecs ago", "10 minutes 5 ago", "minutes 10 ago", "-5 minutes ago", "1e3 s ago"),
        *("1.5 hours ago x", "2026", "2026-11", "2026-13-01", "2026-02-30", "2026-11-23T25:00"),
        *("2026-11-23T10", "24:00", "10:60", "2026-11-23T10:00:05.1234567"),
        *("2026-11-23T10:00+25:00", "@", "@-5", "@x"),
        *("９９s ago x", "x" * 10_000, "1 day " * 5_000),
    ],
)
def test_what_is_no_time_is_a_bad_request(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_time(text, us(NOW), UTC)
    assert caught.value.reason == "bad-time"


def test_times_without_a_zone_are_in_the_callers() -> None:
    assert parse_time("2026-11-23T10:00", us(NOW), EAST) == at(2026, 11, 23, 10, zone=EAST)
    assert parse_time("today", us(NOW), EAST) == at(2026, 11, 23, zone=EAST)
    assert parse_time("15:30", us(NOW), EAST) == at(2026, 11, 23, 10)


def test_a_day_has_the_offset_that_it_had_then() -> None:
    berlin = Berlin()
    assert parse_time("2026-07-01T12:00", us(NOW), berlin) == at(2026, 7, 1, 10)
    assert parse_time("2026-12-01T12:00", us(NOW), berlin) == at(2026, 12, 1, 11)
    assert parse_time("5 months ago", us(NOW), berlin) == us(NOW.replace(month=6)) - 3600_000_000
    assert parse_time("24 hours ago", us(NOW), berlin) == ago(hours=24)


def test_the_local_zone_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC-05:30")
    time.tzset()
    try:
        assert parse_time("2026-11-23T10:00", us(NOW)) == at(2026, 11, 23, 10, zone=EAST)
        assert parse_time("today", us(NOW)) == at(2026, 11, 23, zone=EAST)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_month_before_the_31st_is_its_last_day() -> None:
    now = datetime(2026, 3, 31, 12, tzinfo=UTC)
    assert parse_time("1 month ago", us(now), UTC) == at(2026, 2, 28, 12)


@given(st.datetimes(datetime(1971, 1, 1), datetime(9990, 1, 1)))
def test_iso_times_are_exact_to_the_microsecond(moment: datetime) -> None:
    assert parse_time(moment.isoformat() + "Z", 0, UTC) == us(moment.replace(tzinfo=UTC))


@given(st.text(max_size=20))
def test_any_text_is_a_time_or_a_bad_request(text: str) -> None:
    with suppress(BadRequest):
        assert parse_time(text, us(NOW), UTC) >= 0
