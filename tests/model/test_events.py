"""Every event as a value, as a row and as bytes; and everything that is none of these."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockvault.encoding import pack
from blockvault.errors import BadRequest, Damaged, Unsupported, VaultError
from blockvault.ids import object_id
from blockvault.model import events, rows
from blockvault.model.events import Event
from blockvault.model.rows import from_row, pack_rows, to_row, unpack_rows
from blockvault.model.snapshot import Volume

ID, OTHER = object_id(b"one"), object_id(b"two")
VOLUMES = (Volume("vda", 1 << 30, ID), Volume("vdb", 5, OTHER))

EXAMPLES: list[tuple[Event, tuple[Any, ...]]] = [
    (
        events.Init(vault_id=bytes(range(16)), block_size=4096, compression="zstd:3"),
        (1, 7, bytes(range(16)), 4096, "zstd:3"),
    ),
    (
        events.BranchCreated(name="main", source=0, source_seq=0, snapshot=None, volumes=()),
        (2, 7, "main", 0, 0, None, ()),
    ),
    (
        events.BranchCreated(name="a/b", source=2, source_seq=9, snapshot=ID, volumes=VOLUMES),
        (2, 7, "a/b", 2, 9, ID, VOLUMES),
    ),
    (events.BranchRenamed(branch=2, name="trunk"), (3, 7, 2, "trunk")),
    (events.BranchDeleted(branch=2), (4, 7, 2)),
    (events.BranchRestored(branch=2, name="main"), (5, 7, 2, "main")),
    (events.Switched(branch=2), (6, 7, 2)),
    (events.Tagged(name="v1", snapshot=ID), (7, 7, "v1", ID)),
    (events.Untagged(name="v1"), (8, 7, "v1")),
    (
        events.Wrote(branch=2, volume="vda", offset=100, length=4096, ids=ID + OTHER),
        (16, 7, 2, "vda", 100, 4096, ID + OTHER),
    ),
    (
        events.Zeroed(branch=2, volume="vda", offset=0, length=1 << 40),
        (17, 7, 2, "vda", 0, 1 << 40),
    ),
    (
        events.Trimmed(branch=2, volume="vda", offset=4096, length=4096),
        (18, 7, 2, "vda", 4096, 4096),
    ),
    (events.Barrier(branch=2), (19, 7, 2)),
    (events.Checkpointed(branch=2, volumes=VOLUMES), (32, 7, 2, VOLUMES)),
    (
        events.Imported(branch=2, volumes=VOLUMES, snapshot=ID, source="disk.img"),
        (33, 7, 2, VOLUMES, ID, "disk.img"),
    ),
    (events.Snapshotted(branch=2, volumes=(), snapshot=ID), (34, 7, 2, (), ID)),
    (
        events.RolledBack(branch=2, volumes=VOLUMES, snapshot=None, target_branch=3, target_seq=55),
        (35, 7, 2, VOLUMES, None, 3, 55),
    ),
    (
        events.VolumeChanged(branch=2, volumes=VOLUMES, action="add", volume="vdb"),
        (36, 7, 2, VOLUMES, "add", "vdb"),
    ),
    (events.Held(snapshot=ID, text="audit"), (48, 7, ID, "audit")),
    (events.Unheld(snapshot=ID), (49, 7, ID)),
    (
        events.PolicySet(branch=0, rules=(("last", 3), ("tags", ("v*", "x")))),
        (50, 7, 0, (("last", 3), ("tags", ("v*", "x")))),
    ),
    (
        events.Pruned(kept=((1, 3, ID), (9, 12, OTHER)), base=(("refs", b"HEAD", b"\x91\x02"),)),
        (51, 7, ((1, 3, ID), (9, 12, OTHER)), (("refs", b"HEAD", b"\x91\x02"),)),
    ),
]
ROWS = [row for _, row in EXAMPLES]


def test_the_examples_cover_every_event_and_the_sets_of_codes() -> None:
    assert {event.CODE for event, _ in EXAMPLES} == set(events.EVENTS)
    assert {code for code, kind in events.EVENTS.items() if code != kind.CODE} == set()
    with_volumes = {code for code, kind in events.EVENTS.items() if "volumes" in kind.FIELDS}
    assert with_volumes == events.WAYPOINT_CODES
    assert not events.WAYPOINT_CODES & events.DATA_CODES


@pytest.mark.parametrize(("event", "row"), EXAMPLES)
def test_event_row_and_bytes_say_the_same(event: Event, row: tuple[Any, ...]) -> None:
    assert to_row(event, 7) == row
    assert from_row(row) == (7, event)
    (back,) = unpack_rows(pack_rows([row]))
    assert back == row
    assert from_row(back) == (7, event)


def test_a_record_keeps_its_rows_in_order() -> None:
    rows = [(row[0], dt, *row[2:]) for dt, row in enumerate(ROWS)]
    assert unpack_rows(pack_rows(rows)) == rows


def test_volumes_come_back_as_volumes() -> None:
    (row,) = unpack_rows(pack_rows([(32, 0, 2, VOLUMES)]))
    assert all(type(volume) is Volume for volume in row[3])


def test_bytes_of_a_record_are_pinned() -> None:
    rows = [(16, 0, 2, "vda", 4096, 512, ID), (19, 300, 2)]
    assert pack_rows(rows) == (
        b"\x92\x97\x10\x00\x02\xa3vda\xcd\x10\x00\xcd\x02\x00\xc4\x20"
        + ID
        + b"\x93\x13\xcd\x01\x2c\x02"
    )


def test_every_truncation_is_refused() -> None:
    payload = pack_rows(ROWS)
    for cut in range(len(payload)):
        with pytest.raises(Damaged):
            unpack_rows(payload[:cut])
    with pytest.raises(Damaged):
        unpack_rows(payload + b"\x00")


@given(st.data())
def test_changed_bytes_give_a_documented_error_or_sound_rows(data: st.DataObject) -> None:
    payload = bytearray(pack_rows(ROWS))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        rows = unpack_rows(bytes(payload))
    except (Damaged, Unsupported):
        return
    assert unpack_rows(pack_rows(rows)) == rows
    for row in rows:
        from_row(row)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_documented_error(payload: bytes) -> None:
    with pytest.raises((Damaged, Unsupported)):
        unpack_rows(payload)


BAD: dict[str, list[Any]] = {
    "vault_id": [b"", bytes(15), "x" * 16, None],
    "block_size": [-1, 1 << 63, True, "4096", 4096.0],
    "compression": [b"zstd", None, 3, "\ud800"],
    "name": ["", "a b", "HEAD", "a..b", b"main", None, 5],
    "branch": [0, -1, 1 << 63, "2", None, True],
    "target_branch": [-1, None, "2"],
    "target_seq": [-1, None, 1.5],
    "source_seq": [-1, None, False],
    "offset": [-1, 1 << 63, None, "0"],
    "length": [-1, 1 << 63, None, "0"],
    "ids": [b"", ID[:-1], ID + b"x", None, "x" * 32],
    "volume": ["", "../etc", "a/b", b"vda", None, 7],
    "volumes": [
        None,
        5,
        (5,),
        [[1, 2]],
        (("vda", 1),),
        (("vda", -1, ID),),
        (("vda", 1, ID[:-1]),),
        (("../x", 1, ID),),
        (("b", 1, ID), ("a", 1, ID)),
        (("a", 1, ID), ("a", 1, ID)),
        (("a", 1 << 61, ID),),
    ],
    "action": ["", "explode", None, 1],
    "snapshot": [b"", ID[:-1], "x" * 32, 5],
    "source": [None, -1, b"x"],
    "text": [None, b"x", "\udc80", 7],
    "rules": [None, (1,), (("a",),), (("a", -1),), (("a", (1,)),), (("b", 1), ("a", 1)), "x"],
    "kept": [None, (1,), ((1, 2),), ((3, 3, ID),), ((5, 6, ID), (1, 2, ID)), ((1, 2, b""),)],
    "base": [None, (1,), (("trail", b"", b""),), (("refs", "", b""),), (("refs", b"", 1),)],
}


def bad_values(event: Event, name: str) -> list[Any]:
    """What a field cannot hold; a policy may be for branch 0, which is the vault."""
    vault_too = isinstance(event, events.PolicySet) and name == "branch"
    return BAD[name][1:] if vault_too else BAD[name]


def bad_rows() -> list[Any]:
    found = []
    for event, row in EXAMPLES:
        for at, field in enumerate(event.FIELDS, 2):
            values = bad_values(event, field)
            assert values
            found += [(*row[:at], bad, *row[at + 1 :]) for bad in values]
        found += [row[:-1], (*row, 0), (row[0], -1, *row[2:]), (row[0], None, *row[2:])]
    return found


@pytest.mark.parametrize("row", bad_rows(), ids=lambda row: repr(row)[:60])
def test_a_row_with_a_wrong_field_is_damage(row: tuple[Any, ...]) -> None:
    with pytest.raises(Damaged):
        from_row(row)
    try:
        payload = msgpack.packb([row])
    except (ValueError, UnicodeEncodeError):
        return  # not even msgpack can hold it
    with pytest.raises(Damaged):
        unpack_rows(payload)


def test_the_commonest_rows_are_checked_without_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    common = [(events.WROTE, 0, 2, "vda", 0, 4096, ID), (events.BARRIER, 5, 2)]
    monkeypatch.setattr(rows, "from_row", None)
    assert unpack_rows(pack_rows(common)) == common


@pytest.mark.parametrize("event", [event for event, _ in EXAMPLES], ids=lambda e: type(e).__name__)
def test_a_wrong_field_is_refused_when_an_event_is_built(event: Event) -> None:
    for field in event.FIELDS:
        for bad in bad_values(event, field):
            with pytest.raises(BadRequest):
                type(event)(**vars(event) | {field: bad})


@pytest.mark.parametrize(
    "value",
    [None, 5, [], "x", [5], [[]], [[16]], [["x", 0]], [[None, 0, 1]], [[True, 0, 1]], {"a": 1}],
)
def test_what_is_not_a_list_of_rows_is_damage(value: Any) -> None:
    with pytest.raises(Damaged):
        unpack_rows(msgpack.packb(value))


DEEP = b"\x91" * 1000 + b"\xc0"


@pytest.mark.parametrize(
    "row",
    [DEEP, b"\x93" + DEEP + b"\x00\x02", b"\x93\x13\x00" + DEEP, b"\x93\x13" + DEEP + b"\x02"],
    ids=["row", "code", "branch", "time"],
)
def test_what_is_nested_without_end_is_damage(row: bytes) -> None:
    """What stands there cannot be written out whole, not even in the error."""
    with pytest.raises(Damaged):
        unpack_rows(b"\x91" + row)


def test_time_that_runs_backwards_is_damage() -> None:
    with pytest.raises(Damaged, match="backwards"):
        unpack_rows(pack([(19, 5, 2), (19, 4, 2)]))


@pytest.mark.parametrize("code", [0, 9, 15, 20, 37, 1000])
def test_an_unknown_code_is_unsupported(code: int) -> None:
    with pytest.raises(Unsupported, match="later program"):
        unpack_rows(pack([(19, 0, 2), (code, 0, "new", 1)]))


def test_events_are_immutable_and_compare_by_value() -> None:
    event = events.Barrier(branch=2)
    with pytest.raises(AttributeError):
        event.branch = 3  # type: ignore[misc]
    assert event == events.Barrier(branch=2)
    assert event != events.BranchDeleted(branch=2)
    assert len({event, events.Barrier(branch=2), events.BranchDeleted(branch=2)}) == 2
    assert repr(event) == "Barrier(branch=2)"
    with pytest.raises(AttributeError):
        del event.branch
    with pytest.raises(TypeError):
        events.Barrier(2)  # type: ignore[misc]
    with pytest.raises(TypeError, match="has the fields branch"):
        events.Barrier(branch=2, name="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="has the fields branch"):
        events.Barrier()  # type: ignore[call-arg]


def test_errors_are_of_the_family() -> None:
    assert issubclass(Damaged, VaultError)
    assert issubclass(Unsupported, VaultError)


def test_the_clock_counts_microseconds() -> None:
    assert 1_700_000_000_000_000 < events.now_us() < 10_000_000_000_000_000
