"""Points in time as people write them: ISO 8601, or relative to now.

    2026-11-23T10:00:05.25Z   2026-11-23 10:00   2026-11-23 (its start)   10:00 (the last one)
    now   today (its start)   yesterday (24 hours ago)   @1795428005 (seconds since 1970)
    10 minutes ago   an hour ago   2 days 3 hours ago   90s ago   1 month ago

A time without zone is in the caller's, or in the local one.  Up to weeks, units have a fixed length
("1 day ago" is 24 hours ago); months and years go by the calendar.  All times are microseconds
since 1970 UTC; anything earlier counts as 1970, for no vault is older.
"""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta, tzinfo

from blockvault.errors import BadRequest

_SECOND = 1_000_000
_UNITS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hr": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
    "w": 604800,
    "week": 604800,
}
_MONTHS = {"month": 1, "year": 12, "y": 12}
_WORDS = ["a", "an", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = dict(zip(_WORDS, (1, 1, *range(1, 11)), strict=True))

_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:[.,]\d{1,6})?)?) ?(Z|[+-]\d\d(?::?\d\d)?)?)?"
)
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?")
_EPOCH = re.compile(r"@(\d{1,12})(?:\.(\d{1,6}))?")
_AMOUNT = re.compile(r"(\d{1,12}|[a-z]+)\s*([a-z]+)\s*")
_SEPARATORS = re.compile(r"[\s._,]+")


def parse_time(text: str, now_us: int, zone: tzinfo | None = None) -> int:
    """Return the microseconds since 1970 UTC that ``text`` means at ``now_us``.

    ``zone`` None is the local zone of this machine.  ``BadRequest`` if it means nothing.
    """
    words = _SEPARATORS.sub(" ", text.strip().lower()).strip()
    now = _moment(now_us, zone)
    try:
        found = (
            _named(words, now, zone)
            or _iso(text, zone)
            or _clock(text, now, zone)
            or _relative(words, now, zone)
        )
        if found is not None:
            return max(0, _microseconds(found))
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"'{text}' is not a time: {error}", kind="bad-time") from None
    epoch = _EPOCH.fullmatch(text.strip())
    if epoch:
        return int(epoch[1]) * _SECOND + int((epoch[2] or "").ljust(6, "0"))
    raise BadRequest(
        f"'{text}' is not a time; write 2026-11-23T10:00:05, 10 minutes ago, or yesterday",
        kind="bad-time",
    )


def _moment(time_us: int, zone: tzinfo | None) -> datetime:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return (epoch + timedelta(microseconds=time_us)).astimezone(zone)


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _local(naive: datetime, zone: tzinfo | None) -> datetime:
    """A wall-clock time of the zone, with the offset that the zone has on that day."""
    return naive.astimezone() if zone is None else naive.replace(tzinfo=zone)


def _named(words: str, now: datetime, zone: tzinfo | None) -> datetime | None:
    if words == "now":
        return now
    if words == "yesterday":
        return now - timedelta(days=1)
    if words in ("today", "midnight"):
        return _local(datetime(now.year, now.month, now.day), zone)
    return None


def _iso(text: str, zone: tzinfo | None) -> datetime | None:
    found = _ISO.fullmatch(text.strip().upper())
    if found is None:
        return None
    day, clock, offset = found.groups()
    moment = datetime.fromisoformat(f"{day}T{(clock or '00:00').replace(',', '.')}{offset or ''}")
    return moment if moment.tzinfo else _local(moment, zone)


def _clock(text: str, now: datetime, zone: tzinfo | None) -> datetime | None:
    """A time of day: today's, or yesterday's if that is still to come."""
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        return None
    hour, minute, second = (int(part or 0) for part in found.groups())
    today = datetime(now.year, now.month, now.day, hour, minute, second)
    moment = _local(today, zone)
    return moment if moment <= now else _local(today - timedelta(days=1), zone)


def _relative(words: str, now: datetime, zone: tzinfo | None) -> datetime | None:
    """``2 days 3 hours ago``."""
    amounts = words.removesuffix("ago")
    if amounts == words:
        return None
    seconds = months = at = 0
    for found in _AMOUNT.finditer(amounts):
        number, unit = found[1], found[2].removesuffix("s") or "s"
        count = int(number) if number.isdigit() else _NUMBERS.get(number)
        if found.start() != at or count is None:
            return None
        at = found.end()
        if unit in _UNITS:
            seconds += count * _UNITS[unit]
        elif unit in _MONTHS:
            months += count * _MONTHS[unit]
        else:
            return None
    if at == 0 or at != len(amounts):
        return None
    try:
        return _months_before(now, months, zone) - timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        return datetime(1970, 1, 1, tzinfo=UTC)


def _months_before(now: datetime, months: int, zone: tzinfo | None) -> datetime:
    """The same day and time some months ago, or the month's last day if it is shorter."""
    if months == 0:
        return now
    year, month = divmod(now.year * 12 + now.month - 1 - months, 12)
    day = min(now.day, calendar.monthrange(year, month + 1)[1])
    return _local(now.replace(tzinfo=None, year=year, month=month + 1, day=day), zone)
