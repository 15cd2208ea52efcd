"""The revision syntax as a table."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.errors import BadRequest
from blockvault.ids import object_id
from blockvault.model.refs import AtSeq, AtTime, Revision, Step, parse, split_volume

NOW = 1_795_428_005_000_000
MINUTE = 60_000_000

GOOD: list[tuple[str, str, AtSeq | AtTime | None, tuple[Step, ...]]] = [
    ("main", "main", None, ()),
    ("  main ", "main", None, ()),
    ("HEAD", "HEAD", None, ()),
    ("@", "HEAD", None, ()),
    ("@~1", "HEAD", None, (Step("~", 1),)),
    ("main~", "main", None, (Step("~", 1),)),
    ("main~0", "main", None, (Step("~", 0),)),
    ("main~12", "main", None, (Step("~", 12),)),
    ("main^", "main", None, (Step("^", 1),)),
    ("main^0", "main", None, (Step("^", 0),)),
    ("main^2~3^^", "main", None, (Step("^", 2), Step("~", 3), Step("^", 1), Step("^", 1))),
    ("feature/x~1", "feature/x", None, (Step("~", 1),)),
    ("v1.0", "v1.0", None, ()),
    ("me@home", "me@home", None, ()),
    ("3f2a9c", "3f2a9c", None, ()),
    ("main@{#12345}", "main", AtSeq(12345), ()),
    ("@{#0}", "HEAD", AtSeq(0), ()),
    ("HEAD@{ #7 }", "HEAD", AtSeq(7), ()),
    ("main@{#7}~2", "main", AtSeq(7), (Step("~", 2),)),
    ("main@{10 minutes ago}", "main", AtTime(NOW - 10 * MINUTE), ()),
    ("@{yesterday}^", "HEAD", AtTime(NOW - 1440 * MINUTE), (Step("^", 1),)),
    ("main@{2026-11-23T10:00:05}", "main", AtTime(NOW), ()),
    ("main@{2026-11-23 11:00:05+01:00}", "main", AtTime(NOW), ()),
]


@pytest.mark.parametrize(("text", "base", "at", "steps"), GOOD)
def test_parse(text: str, base: str, at: AtSeq | AtTime | None, steps: tuple[Step, ...]) -> None:
    assert parse(text, NOW, UTC) == Revision(text, base, at, steps)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "~", "~2", "^", "-x", "a b", "a..b", "a:b", "a//b"),
        *("main~x", "main~1x", "main~-1", "main^-1", "main~ 1", "main ~1"),
        *("main@{", "main@{}", "main@{#}", "main@{-1}", "main@{5}", "main@{#-1}", "main@{#1.5}"),
        *("main@{nonsense}", "main@{{#1}}", "main@{#1}@{#2}", "main~1@{#1}", "main@{#1}x"),
        *("main~1234567890", "x@{#1", "\x00", "main\n~1x", "main@{#9999999999999999999}"),
    ],
)
def test_what_is_no_revision_is_a_bad_request(text: str) -> None:
    with pytest.raises(BadRequest):
        parse(text, NOW, UTC)


@given(st.text(st.sampled_from("a1~^@{}#: -/.HEAD\n"), max_size=12))
def test_any_text_parses_or_is_a_bad_request(text: str) -> None:
    with suppress(BadRequest):
        assert parse(text, NOW, UTC).base


def test_long_input_is_answered_at_once() -> None:
    for text in ("~" * 50_000 + "x", "a" * 100_000 + "@{", "@{" * 50_000, "^1" * 50_000 + " "):
        with pytest.raises(BadRequest):
            parse(text, NOW, UTC)


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("abc", None),
        ("abcd", "abcd"),
        ("ABCD12~3", "abcd12"),
        (object_id(b"x").hex(), object_id(b"x").hex()),
        (object_id(b"x").hex() + "0", None),
        ("abcg", None),
        ("HEAD", None),
        ("main", None),
    ],
)
def test_hex_prefix(text: str, prefix: str | None) -> None:
    assert parse(text, NOW).hex_prefix == prefix


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("main", ("main", None)),
        ("main:vda", ("main", "vda")),
        ("main~1:disk 1", ("main~1", "disk 1")),
        (":vda", ("HEAD", "vda")),
        ("main@{10:00:05}", ("main@{10:00:05}", None)),
        ("main@{2026-11-23T10:00:05}~1:vda", ("main@{2026-11-23T10:00:05}~1", "vda")),
        ("main:a:b", ("main", "a:b")),
        ("a{:vda", ("a{", "vda")),
        ("a{b}@{10:00}:vda", ("a{b}@{10:00}", "vda")),
    ],
)
def test_split_volume(text: str, parts: tuple[str, str | None]) -> None:
    assert split_volume(text) == parts


@pytest.mark.parametrize("text", ["main:", ":", "main@{10:00}:"])
def test_a_colon_without_a_volume_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        split_volume(text)
