"""Snapshots: one value, one encoding, one id."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.encoding import pack
from blockvault.errors import BadRequest, Damaged, Unsupported
from blockvault.ids import ZERO_ID, object_id
from blockvault.model.snapshot import MAX_SIZE, Snapshot, Volume

A, B = object_id(b"a"), object_id(b"b")
EXAMPLE = Snapshot(
    parents=(A, B),
    volumes=(Volume("vda", 1 << 30, A), Volume("vdb", 0, ZERO_ID)),
    attachments=(Volume("memory", 5, B),),
    message="Größe\n\nbody",
    author="me@here",
    time_us=1_795_428_005_000_000,
    seq=77,
)
VALUE = [
    1,
    [A, B],
    [["vda", 1 << 30, A], ["vdb", 0, ZERO_ID]],
    [["memory", 5, B]],
    "Größe\n\nbody",
    "me@here",
    1_795_428_005_000_000,
    77,
]

ids = st.binary(min_size=32, max_size=32)
volumes = st.dictionaries(
    st.text("abcXYZ019-_é", min_size=1, max_size=9).filter(lambda name: name[0] != "-"),
    st.tuples(st.integers(0, MAX_SIZE), ids),
    max_size=4,
).map(lambda found: tuple(Volume(name, *found[name]) for name in sorted(found)))
snapshots = st.builds(
    Snapshot,
    parents=st.lists(ids, max_size=3, unique=True).map(tuple),
    volumes=volumes,
    attachments=volumes,
    message=st.text(max_size=30),
    author=st.text(max_size=10),
    time_us=st.integers(0, 1 << 60),
    seq=st.integers(0, 1 << 60),
)


def test_the_encoding_is_pinned() -> None:
    assert EXAMPLE.encode() == pack(VALUE)
    assert EXAMPLE.id == object_id(pack(VALUE))


@given(snapshots)
def test_decode_gives_back_what_encode_took(snapshot: Snapshot) -> None:
    again = Snapshot.decode(snapshot.encode())
    assert again == snapshot
    assert again.id == object_id(snapshot.encode())
    assert all(type(volume) is Volume for volume in again.volumes)


def test_any_difference_gives_another_id() -> None:
    others = [
        replace(EXAMPLE, parents=(B, A)),
        replace(EXAMPLE, volumes=EXAMPLE.volumes[:1]),
        replace(EXAMPLE, attachments=()),
        replace(EXAMPLE, message=""),
        replace(EXAMPLE, author=""),
        replace(EXAMPLE, time_us=0),
        replace(EXAMPLE, seq=78),
    ]
    assert len({snapshot.id for snapshot in [EXAMPLE, *others]}) == 8


def test_every_truncation_and_extension_is_damage() -> None:
    data = EXAMPLE.encode()
    for cut in range(len(data)):
        with pytest.raises(Damaged):
            Snapshot.decode(data[:cut])
    with pytest.raises(Damaged):
        Snapshot.decode(data + b"\0")


@given(st.integers(0, 1 << 16), st.integers(0, 255))
def test_a_changed_byte_never_decodes_to_the_same_snapshot(at: int, value: int) -> None:
    data = bytearray(EXAMPLE.encode())
    if data[at % len(data)] == value:
        return
    data[at % len(data)] = value
    try:
        other = Snapshot.decode(bytes(data))
    except (Damaged, Unsupported):
        return
    assert other != EXAMPLE
    assert other.encode() == data


@pytest.mark.parametrize(
    "value", [None, 1, [], [True], ["1"], [[1]], "x", [1], VALUE[:-1], [*VALUE, 0]]
)
def test_another_shape_is_damage(value: Any) -> None:
    with pytest.raises(Damaged):
        Snapshot.decode(pack(value))


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_version_is_unsupported(version: int) -> None:
    with pytest.raises(Unsupported):
        Snapshot.decode(pack([version, "anything"]))


BAD_FIELDS: list[tuple[int, Any]] = [
    (1, None),
    (1, [A, A]),
    (1, [A[:-1]]),
    (1, ["x" * 32]),
    (2, None),
    (2, [["vda", 1]]),
    (2, [["vda", -1, A]]),
    (2, [["vda", MAX_SIZE + 1, A]]),
    (2, [["vda", 1.0, A]]),
    (2, [["vda", 1, A[1:]]]),
    (2, [["../x", 1, A]]),
    (2, [["b", 1, A], ["a", 1, A]]),
    (2, [["a", 1, A], ["a", 1, A]]),
    (2, "vda"),
    (3, [[b"memory", 1, A]]),
    (4, b"bytes"),
    (4, None),
    (5, 5),
    (6, -1),
    (6, "now"),
    (6, True),
    (7, 1 << 63),
]


@pytest.mark.parametrize(("at", "bad"), BAD_FIELDS)
def test_a_wrong_field_is_damage(at: int, bad: Any) -> None:
    with pytest.raises(Damaged):
        Snapshot.decode(pack([*VALUE[:at], bad, *VALUE[at + 1 :]]))


def test_an_encoding_that_is_not_canonical_is_damage() -> None:
    data = EXAMPLE.encode()
    assert data[-1] == 77
    with pytest.raises(Damaged, match="canonical"):
        Snapshot.decode(data[:-1] + b"\xcc\x4d")  # 77 in two bytes
    assert msgpack.unpackb(data[:-1] + b"\xcc\x4d") == VALUE


def test_building_checks_the_fields() -> None:
    with pytest.raises(BadRequest):
        replace(EXAMPLE, volumes=EXAMPLE.volumes[::-1])
    with pytest.raises(BadRequest):
        replace(EXAMPLE, message="\ud800")
    with pytest.raises(BadRequest):
        replace(EXAMPLE, parents=(A, A))


@pytest.mark.parametrize(
    ("name", "size", "root"),
    [
        ("a/b", 1, A),
        ("a", -1, A),
        ("a", MAX_SIZE + 1, A),
        ("a", True, A),
        ("a", 1, A[1:]),
        ("", 1, A),
    ],
)
def test_volume_checked_refuses(name: Any, size: Any, root: Any) -> None:
    with pytest.raises(BadRequest):
        Volume.checked(name, size, root)


def test_a_volume_is_found_by_name() -> None:
    assert EXAMPLE.volume("vdb") == Volume("vdb", 0, ZERO_ID)
    assert EXAMPLE.volume("memory") is None


def test_values_nested_without_end_are_refused() -> None:
    """Such a value cannot even be shown: that must not become another error."""
    sound = pack((1, (), (("vda", 12345, bytes(32)),), (), "", "", 1, 1))
    for depth in (10, 500, *range(850, 1020, 10)):
        with pytest.raises(Damaged):
            Snapshot.decode(sound.replace(pack(12345), b"\x91" * depth + b"\x90"))
