"""Text for people and JSON for programs; no command prints by any other way.

Text is made to be read and cut up: one thing per line, columns with two spaces between them, ids
shortened to twelve digits, sizes in powers of 1024, local time.  JSON is exact: one object per
line (so that long lists stream), full ids, bytes as integers, UTC time with microseconds.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import click

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_COLUMN_GAP = "  "


def write(text: str = "") -> None:
    """Print one line or more.  Foreign text in it went through ``clean``, so that all escape
    sequences left are our own styles; they are dropped where nobody would see them."""
    if "\x1b" in text and not _coloured():
        text = click.unstyle(text)
    sys.stdout.write(text + "\n")


def write_json(value: Mapping[str, Any]) -> None:
    """Print one object as one line."""
    sys.stdout.write(json_text(value, sys.stdout, separators=(",", ":")) + "\n")


def json_text(value: Any, stream: TextIO, **form: Any) -> str:
    """JSON for a stream: what is not ASCII is escaped, unless that takes UTF-8 as JSON is to be."""
    return json.dumps(value, ensure_ascii=stream.encoding.lower() != "utf-8", **form)


def flush() -> None:
    """Let what was printed be seen now, by a pipe too."""
    sys.stdout.flush()


@functools.cache
def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def pick(value: object, names: Iterable[str]) -> dict[str, Any]:
    """Some attributes of a value, as a JSON object."""
    return {name: getattr(value, name) for name in names}


def clean(text: str) -> str:
    """Foreign text (messages, file names) on one line, without what would steer a terminal.

    Who shows text of several lines takes them apart first.
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def subject(message: str) -> str:
    """The first line of a message."""
    return clean("".join(message.strip().splitlines()[:1]))


def size(count: int) -> str:
    """``4096`` as ``4.0 KiB``; below 1024 exactly."""
    if count < 1024:
        return f"{count} B"
    value, power = count / 1024, 0
    while value >= 1023.95 and power + 1 < len(_UNITS):
        value, power = value / 1024, power + 1
    return f"{value:.1f} {_UNITS[power]}"


def plural(count: int, noun: str, many: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def local_time(time_us: int) -> str:
    """Microseconds since 1970 as people read them: ``2026-11-23 10:00:05 +0100``."""
    moment = datetime.fromtimestamp(time_us // 1_000_000, UTC).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S %z")


def precise_time(time_us: int) -> str:
    """Local time with microseconds and without the zone, for lists of close moments."""
    second, part = divmod(time_us, 1_000_000)
    return f"{_second(second)}.{part:06}"


@functools.lru_cache(64)  # many share one, and the zone is dear to find
def _second(time_s: int) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def utc_time(time_us: int) -> str:
    """The form for JSON: ``2026-11-23T09:00:05.000000Z``; revisions take it too."""
    moment = datetime.fromtimestamp(time_us // 1_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_us % 1_000_000:06}Z"


def columns(rows: Iterable[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Align cells in columns; those of ``right`` to the right.  Styled cells align as well."""
    table = [tuple(row) for row in rows]
    if not table:
        return []
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            pad = " " * (width - _width(cell))
            cells.append(pad + cell if place in right else cell + pad)
        lines.append(_COLUMN_GAP.join(cells).rstrip())
    return lines


def _width(cell: str) -> int:
    return len(click.unstyle(cell))
