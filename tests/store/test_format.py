"""Which programs may open a vault."""

from __future__ import annotations

import pytest

from blockvault.encoding import pack
from blockvault.errors import BadRequest, Damaged, Unsupported
from blockvault.store import format as fmt
from blockvault.store.types import Options
from tests.store.material import OPTIONS


def rows(**changes: object) -> dict[bytes, bytes]:
    return fmt.to_meta(OPTIONS) | {name.encode(): pack(v) for name, v in changes.items()}


def test_what_is_written_is_read() -> None:
    for compression in ("none", "zstd:19"):
        options = Options(bytes(16), 65536, compression)
        assert fmt.from_meta(fmt.to_meta(options)) == options


def test_a_newer_format_is_refused_and_named() -> None:
    with pytest.raises(Unsupported, match="format 2; this program knows formats up to 1") as caught:
        fmt.from_meta(rows(format=2))
    assert caught.value.reason == "newer-format"


def test_the_format_is_judged_before_anything_else_is_read() -> None:
    with pytest.raises(Unsupported):
        fmt.from_meta({b"format": pack(9)})


def test_unknown_required_features_are_refused_and_named() -> None:
    with pytest.raises(Unsupported, match="encrypted, sharded") as caught:
        fmt.from_meta(rows(features=[["sharded", "encrypted"], []]))
    assert caught.value.reason == "unknown-feature"


def test_unknown_optional_features_are_ignored() -> None:
    known = list(OPTIONS.features)
    assert fmt.from_meta(rows(features=[known, ["anything"]])) == OPTIONS
    assert fmt.from_meta(rows(something_else=1)) == OPTIONS


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 0},
        {"format": "1"},
        {"format": None},
        {"features": []},
        {"features": [[1], []]},
        {"features": "x"},
        {"vault_id": b"short"},
        {"vault_id": 5},
        {"block_size": 0},
        {"block_size": 5000},
        {"block_size": 1 << 40},
        {"compression": "lz4"},
        {"compression": b"none"},
    ],
    ids=str,
)
def test_rows_that_no_program_wrote_are_damage(changes: dict[str, object]) -> None:
    with pytest.raises(Damaged):
        fmt.from_meta(rows(**changes))


@pytest.mark.parametrize("name", sorted(fmt.to_meta(OPTIONS)))
def test_missing_or_undecodable_rows_are_damage(name: bytes) -> None:
    whole = rows()
    with pytest.raises(Damaged):
        fmt.from_meta({key: value for key, value in whole.items() if key != name})
    with pytest.raises(Damaged):
        fmt.from_meta(whole | {name: b"\xc1"})


@pytest.mark.parametrize(
    "options",
    [
        Options(bytes(15), 4096, "none"),
        Options(bytes(16), 512, "none"),
        Options(bytes(16), 131072, "none"),
        Options(bytes(16), 6000, "none"),
        Options(bytes(16), 4096, "gzip"),
    ],
)
def test_options_that_no_vault_can_have_are_refused(options: Options) -> None:
    with pytest.raises(BadRequest):
        fmt.check_options(options)
