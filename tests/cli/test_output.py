"""Text for people: sizes, times, columns, foreign bytes, and the graph of history."""

from __future__ import annotations

import logging
import threading

import click
import pytest

from blockvault.cli import logs, output
from blockvault.cli.common import SECONDS, parse_size
from blockvault.cli.graph import Graph


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (2 * 1024**3, "2.0 GiB"),
        (1 << 60, "1.0 EiB"),
        (1 << 71, "2048.0 EiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4K", 4096),
        ("4k", 4096),
        ("4KiB", 4096),
        ("4 kb", 4096),
        ("1.5G", 3 << 29),
        ("0.1M", 104857),
        ("2T", 2 << 40),
        ("16777217.0K", 16777217 * 1024),
    ],
)
def test_parse_size(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "K", "4X", "-1", "1.5", "4K4", "0x10", "1e3", "∞"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_size(text)


@pytest.mark.parametrize("text", ["inf", "1e10"])
def test_nobody_is_told_to_wait_longer_than_is_possible(text: str) -> None:
    assert SECONDS.convert(text, None, None) == threading.TIMEOUT_MAX


def test_what_is_logged_of_others_is_a_line_and_steers_nothing() -> None:
    foreign = "x\n2026-11-30 ERROR forged\r\x1b[2J\u2028y"

    def fails() -> None:
        raise ValueError(foreign)

    with pytest.raises(ValueError) as raised:  # noqa: PT011
        fails()
    formatter = logs.Lines("%(levelname)s %(message)s")
    record = logging.LogRecord("", logging.INFO, "", 0, "no export %s", (foreign,), None)
    said = formatter.format(record)
    assert said == "INFO no export x 2026-11-30 ERROR forged \N{REPLACEMENT CHARACTER}[2J y"
    error = (raised.type, raised.value, raised.tb)
    record = logging.LogRecord("", logging.ERROR, "", 0, "a fault", None, error)
    first, *more = formatter.format(record).split("\n")
    assert first == "ERROR a fault"
    assert more[0] == "  Traceback (most recent call last):"
    assert len(more) > 3
    assert all(line.startswith("  ") and output.clean(line) == line for line in more)


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1_700_000_000_000_001
    assert output.utc_time(moment) == "2023-11-14T22:13:20.000001Z"
    assert output.utc_time(0) == "1970-01-01T00:00:00.000000Z"
    assert output.precise_time(moment).endswith(":20.000001")
    assert output.precise_time(moment + 1_999_998).endswith(":21.999999")


def test_columns_align_styled_cells_and_trim_the_end() -> None:
    rows = [("a", click.style("10", fg="red"), "x"), ("bbb", "9", "")]
    lines = output.columns(rows, right=frozenset({1}))
    assert [click.unstyle(line) for line in lines] == ["a    10  x", "bbb   9"]
    assert output.columns([]) == []


def test_foreign_text_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in output.clean("\x1b[2Jhello\x07\x9b")
    assert output.clean("one\ntwo\tthree") == "one\N{REPLACEMENT CHARACTER}two\tthree"
    assert output.subject("one\ntwo") == "one"
    assert output.subject("\r\none\r\ntwo") == "one"


def test_plural() -> None:
    assert output.plural(1, "block") == "1 block"
    assert output.plural(1000, "block") == "1,000 blocks"
    assert output.plural(2, "entry", "entries") == "2 entries"


def drawn(history: str) -> list[str]:
    """Draw ``"c:ab b:a a:"``: snapshots, newest first, with their parents."""
    graph, lines = Graph(), []
    for item in history.split():
        name, _, parents = item.partition(":")
        lines += graph.draw(name.encode(), [parent.encode() for parent in parents], [name])
    return lines


@pytest.mark.parametrize(
    ("history", "lines"),
    [
        ("c:b b:a a:", ["* c", "* b", "* a"]),
        ("c:ab b:x a:x x:", ["*   c", "|\\", "| * b", "* | a", "|/", "* x"]),
        ("e:d f:c d:c c:", ["* e", "| * f", "* | d", "|/", "* c"]),
        (
            "m:abc a:r b:r c:r r:",
            ["*     m", "|\\", "|\\ \\", "* | | a", "| * | b", "| | * c", "|_|/", "|/", "* r"],
        ),
        ("e: f:c c:", ["* e", "", "* f", "* c"]),
        ("a:x b: c:x x:", ["* a", "| * b", "|", "| * c", "|/", "* x"]),
        ("a:x b: x:", ["* a", "| * b", "* x"]),
    ],
    ids=["line", "merge", "fork", "octopus", "unrelated", "root-between", "root-beside"],
)
def test_graph(history: str, lines: list[str]) -> None:
    assert drawn(history) == lines


def test_graph_puts_lanes_in_front_of_every_line_of_text() -> None:
    graph = Graph()
    assert graph.draw(b"m", [b"a", b"b"], ["m", "text", "more", "end"]) == [
        "*   m",
        "|\\  text",
        "| | more",
        "| | end",
    ]
    assert graph.draw(b"a", [b"b"], ["a", "text"]) == ["* | a", "| | text"]
    assert graph.draw(b"b", [], ["b", "text"]) == ["|/", "* b", "  text"]
