"""Ranges of volumes into streams: exact and in order, each span read in the order that is cheap."""

from __future__ import annotations

import io
import os
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault import Vault
from blockvault.errors import BadRequest, Damaged
from blockvault.ops import copying, streaming
from tests.ops.scattered import LEAF, SIZE, STEP
from tests.oracle import BLOCK


@pytest.fixture
def short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of one, two and four leaves."""
    monkeypatch.setattr(copying, "WINDOW", LEAF)
    monkeypatch.setattr(copying, "_WRITE", LEAF)
    monkeypatch.setattr(streaming, "_LONGEST", 4 * LEAF)
    monkeypatch.setattr(streaming, "_WRITE", 3 * BLOCK)


def streamed(vault: Vault, start: int, length: int) -> tuple[bytes, int, list[int]]:
    out, progress = io.BytesIO(), list[int]()
    device = vault.device("main", "v")
    data = streaming.stream(device, out, start, length, lambda at, _: progress.append(at))
    return out.getvalue(), data, progress


@pytest.mark.usefixtures("short_spans")
def test_the_whole_of_a_disk(vault: Vault, scattered: bytes) -> None:
    found, data, progress = streamed(vault, 0, SIZE)
    assert found == scattered
    assert data == SIZE - LEAF, "all but the zeros"
    assert progress == sorted(progress)
    assert progress[-1] == SIZE


@pytest.mark.usefixtures("short_spans")
@pytest.mark.parametrize("start", [0, 1, LEAF - 1, LEAF, 6 * LEAF + 5, 7 * LEAF, SIZE - 3, SIZE])
@pytest.mark.parametrize("length", [0, 1, BLOCK, LEAF, 5 * LEAF - 1, SIZE])
def test_ranges(vault: Vault, scattered: bytes, start: int, length: int) -> None:
    length = min(length, SIZE - start)
    assert streamed(vault, start, length)[0] == scattered[start : start + length]


@pytest.mark.usefixtures("scattered")
@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, -1), (SIZE, 1), (0, SIZE + 1)])
def test_ranges_that_are_none(vault: Vault, start: int, length: int) -> None:
    with pytest.raises(BadRequest):
        streamed(vault, start, length)


@pytest.mark.usefixtures("short_spans")
def test_each_frame_is_decoded_once_a_span(
    vault: Vault, scattered: bytes, decoded: Counter[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_LONGEST", LEAF)
    assert streamed(vault, 0, SIZE)[0] == scattered
    one_leaf = max(decoded.values())
    decoded.clear()
    monkeypatch.setattr(streaming, "_LONGEST", 4 * LEAF)
    assert streamed(vault, 0, SIZE)[0] == scattered
    assert len(decoded) > STEP
    assert max(decoded.values()) <= 5 < one_leaf, "1 + 1 + 2 + 4 + 4 leaves, and the end"


@pytest.mark.usefixtures("short_spans", "scattered")
def test_who_wants_little_does_not_wait_for_all(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, filled = streaming._fill, list[int]()

    def filling(device: object, span: streaming._Span) -> int:
        filled.append(span.stop)
        return fill(device, span)  # type: ignore[arg-type]

    class Closed(io.BytesIO):
        def write(self, _: object) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(streaming, "_fill", filling)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BrokenPipeError):
        streaming.stream(vault.device("main", "v"), Closed(), 0, SIZE)
    assert filled[0] == LEAF
    assert len(filled) <= streaming._UNDER_WAY
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.usefixtures("short_spans")
def test_what_came_before_a_missing_object_is_right(vault: Vault, scattered: bytes) -> None:
    oid = vault.device("main", "v").ids(5 * LEAF // BLOCK, 5 * LEAF // BLOCK + 1)[0]
    with vault.store.write() as writer:
        writer.unindex([oid])
    out = io.BytesIO()
    with pytest.raises(Damaged, match="missing"):
        streaming.stream(vault.device("main", "v"), out, 0, SIZE)
    assert out.getvalue() == scattered[: out.tell()]
    assert 0 < out.tell() <= 5 * LEAF


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 32))
def test_spans_cover_a_range(start: int, length: int) -> None:
    spans = list(streaming._spans(start, start + length, iter(range(1 << 20))))
    assert [span.start for span in spans[:1]] == [start][: len(spans)]
    assert sum(span.stop - span.start for span in spans) == length
    assert all(one.stop == following.start for one, following in pairwise(spans))
    assert all(span.start < span.stop <= span.start + streaming._LONGEST for span in spans)
    assert all(span.stop % copying.WINDOW == 0 for span in spans[:-1])
    assert all(span.stop - span.start <= copying.WINDOW for span in spans[:1])
