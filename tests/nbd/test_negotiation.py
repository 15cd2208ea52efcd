"""The handshake, message by message, without a socket."""

from __future__ import annotations

import struct

import pytest

from blockvault.nbd.exports import Exports
from blockvault.nbd.negotiation import Negotiation, Phase
from tests.nbd import messages as m
from tests.nbd.memory import MemoryCatalogue, MemoryDevice, MemoryVolume

SIZE = 1 << 20


@pytest.fixture
def volume() -> MemoryVolume:
    return MemoryVolume("main/vda", MemoryDevice(SIZE), "the head of main")


@pytest.fixture
def other() -> MemoryVolume:
    return MemoryVolume("v1.0/vda", MemoryDevice(SIZE // 2, read_only=True))


@pytest.fixture
def exports(volume: MemoryVolume, other: MemoryVolume) -> Exports:
    return Exports(MemoryCatalogue(volume, other))


def start(
    exports: Exports, *, tls: bool = False, flags: int = m.FIXED | m.NO_ZEROES
) -> Negotiation:
    negotiation = Negotiation(exports, tls=tls)
    assert negotiation.greeting() == m.GREETING
    negotiation.feed(m.client_flags(flags))
    assert negotiation.step() == b""
    return negotiation


def say(negotiation: Negotiation, data: bytes) -> bytes:
    negotiation.feed(data)
    sent = b""
    while (reply := negotiation.step()) is not None:
        sent += reply
    return sent


def codes(stream: bytes) -> list[int]:
    return [reply.code for reply in m.option_replies(stream)]


def infos(stream: bytes) -> dict[int, bytes]:
    replies = m.option_replies(stream)
    found = {int.from_bytes(r.data[:2], "big"): r.data[2:] for r in replies if r.code == m.REP_INFO}
    assert len(found) == sum(r.code == m.REP_INFO for r in replies)
    return found


def export_info(stream: bytes) -> tuple[int, int]:
    size, flags = struct.unpack(">QH", infos(stream)[0])
    return size, flags


# -- greeting and flags ----------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [4, 0x80000000, 7, 0xFFFFFFFF])
def test_unknown_client_flags_end_the_connection(exports: Exports, flags: int) -> None:
    negotiation = Negotiation(exports)
    assert say(negotiation, m.client_flags(flags)) == b""
    assert negotiation.phase is Phase.CLOSED


def test_a_whole_handshake_byte_by_byte(exports: Exports, volume: MemoryVolume) -> None:
    negotiation = Negotiation(exports)
    stream = m.client_flags() + m.option(m.STRUCTURED) + m.go("main/vda", 3) + b"first request"
    sent = b""
    for place in range(len(stream)):
        negotiation.feed(stream[place : place + 1])
        while (reply := negotiation.step()) is not None:
            sent += reply
    assert codes(sent) == [m.ACK, m.REP_INFO, m.REP_INFO, m.ACK]
    assert negotiation.phase is Phase.TRANSMISSION
    assert negotiation.choice is not None
    assert negotiation.choice.structured
    assert negotiation.choice.export.device is volume.device
    assert negotiation.rest() == b"first request"
    assert negotiation.rest() == b""


def test_one_step_answers_one_option(exports: Exports) -> None:
    negotiation = start(exports)
    negotiation.feed(m.option(m.LIST) * 3)
    for _ in range(3):
        reply = negotiation.step()
        assert reply is not None
        assert codes(reply) == [m.SERVER, m.SERVER, m.ACK]
    assert negotiation.step() is None


# -- EXPORT_NAME -----------------------------------------------------------------------------------


def test_export_name_is_answered_with_size_and_flags(exports: Exports) -> None:
    negotiation = start(exports)
    sent = say(negotiation, m.option(m.EXPORT_NAME, b"main/vda"))
    assert struct.unpack(">QH", sent) == (SIZE, 0b110101101101)
    assert negotiation.phase is Phase.TRANSMISSION


def test_zeroes_follow_for_a_client_that_did_not_decline_them(exports: Exports) -> None:
    sent = say(start(exports, flags=m.FIXED), m.option(m.EXPORT_NAME, b"main/vda"))
    assert len(sent) == 134
    assert sent[10:] == bytes(124)


def test_a_client_without_fixed_newstyle_has_only_export_name(exports: Exports) -> None:
    sent = say(start(exports, flags=0), m.option(m.EXPORT_NAME, b"v1.0/vda"))
    assert len(sent) == 134
    negotiation = start(exports, flags=0)
    assert say(negotiation, m.option(m.LIST)) == b""
    assert negotiation.phase is Phase.CLOSED


@pytest.mark.parametrize("name", [b"nobody", b"\xff\xfe", b"main/vda\0", b"x" * 4097])
def test_export_name_of_nothing_ends_the_connection(exports: Exports, name: bytes) -> None:
    negotiation = start(exports)
    assert say(negotiation, m.option(m.EXPORT_NAME, name)) == b""
    assert negotiation.phase is Phase.CLOSED


# -- LIST, INFO, GO --------------------------------------------------------------------------------


def test_list_names_and_describes(exports: Exports) -> None:
    replies = m.option_replies(say(start(exports), m.option(m.LIST)))
    assert [r.data for r in replies] == [
        m.text("main/vda") + b"the head of main", m.text("v1.0/vda"), b"",
    ]  # fmt: skip


def test_info_tells_all_without_opening(exports: Exports, volume: MemoryVolume) -> None:
    negotiation = start(exports)
    sent = say(negotiation, m.option(m.INFO, m.info_data("main/vda", 1, 2, 3, 77)))
    assert infos(sent) == {
        0: struct.pack(">QH", SIZE, 0b110101101101),
        1: b"main/vda",
        2: b"the head of main",
        3: struct.pack(">III", 1, 4096, 32 << 20),
    }
    assert negotiation.phase is Phase.OPTIONS
    assert volume.opened == 0


def test_the_default_export_says_its_name(exports: Exports) -> None:
    assert infos(say(start(exports), m.go("")))[1] == b"main/vda"


def test_go_opens_and_df_needs_structured_replies(exports: Exports, volume: MemoryVolume) -> None:
    assert export_info(say(start(exports), m.go("main/vda")))[1] & 1 << 7 == 0
    negotiation = start(exports)
    sent = say(negotiation, m.option(m.STRUCTURED) + m.go("main/vda"))
    assert codes(sent) == [m.ACK, m.REP_INFO, m.ACK]
    assert export_info(sent) == (SIZE, 0b110111101101)
    assert volume.opened == 1


def test_flags_of_a_read_only_export(exports: Exports) -> None:
    assert export_info(say(start(exports), m.go("v1.0/vda"))) == (SIZE // 2, 0b10100001111)


def test_go_that_fails_leaves_the_handshake_open(exports: Exports, volume: MemoryVolume) -> None:
    negotiation = start(exports)
    assert codes(say(negotiation, m.go("nobody"))) == [m.UNKNOWN]
    volume.busy = True
    (reply,) = m.option_replies(say(negotiation, m.go("main/vda")))
    assert reply.code == m.POLICY
    assert b"secret" not in reply.data
    assert b"4711" not in reply.data
    volume.busy = False
    assert codes(say(negotiation, m.go("main/vda"))) == [m.REP_INFO, m.ACK]


@pytest.mark.parametrize("option", [m.GO, m.EXPORT_NAME])
def test_a_name_that_means_another_state_by_now_is_found_once_more(
    exports: Exports, volume: MemoryVolume, monkeypatch: pytest.MonkeyPatch, option: int
) -> None:
    found: list[MemoryVolume] = []
    now = MemoryVolume("main/vda", MemoryDevice(SIZE))

    def find(name: str) -> MemoryVolume:
        found.append(now if found else volume)
        return found[-1]

    volume.busy = True
    monkeypatch.setattr(exports, "find", find)
    negotiation = start(exports)
    say(negotiation, m.go("main/vda") if option == m.GO else m.option(m.EXPORT_NAME, b"main/vda"))
    assert negotiation.choice is not None
    assert negotiation.choice.export.volume is now
    assert found == [volume, now]


def test_an_unexpected_error_of_a_volume_is_not_told(
    exports: Exports, volume: MemoryVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> MemoryDevice:
        raise RuntimeError("/secret/path is broken")

    monkeypatch.setattr(volume, "open", fail)
    (reply,) = m.option_replies(say(start(exports), m.go("main/vda")))
    assert reply.code == m.UNKNOWN
    assert reply.data == b"the export is not available"


# -- malformed options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        m.option(m.LIST, b"x"),
        m.option(m.STRUCTURED, b"x"),
        m.option(m.STARTTLS, b"x"),
        m.option(m.GO),
        m.option(m.GO, b"\0\0\0"),
        m.option(m.GO, m.text("main/vda")),
        m.option(m.GO, m.info_data("main/vda", 3)[:-1]),
        m.option(m.GO, m.info_data("main/vda", 3) + b"x"),
        m.option(m.INFO, struct.pack(">I", 0xFFFFFFFF) + b"main/vda\0\0"),
        m.option(m.INFO, m.info_data(b"\xff")),
        m.option(m.INFO, m.info_data("a\0b")),
        m.option(m.INFO, m.info_data("x" * 4097)),
        m.option(m.SET_META, m.meta_data("main/vda", "base:allocation")[:-1]),
        m.option(m.SET_META, m.meta_data("main/vda", "base:allocation") + b"x"),
        m.option(m.SET_META, m.text("main/vda") + struct.pack(">I", 0xFFFFFFFF)),
        m.option(m.SET_META, m.meta_data("main/vda", *["base:allocation"] * 65)),
        m.option(m.LIST_META, m.text("main/vda") + struct.pack(">II", 1, 5000) + bytes(5000)),
    ],
)
def test_malformed_options_are_invalid_and_the_next_one_works(
    exports: Exports, message: bytes
) -> None:
    negotiation = start(exports)
    say(negotiation, m.option(m.STRUCTURED))
    sent = say(negotiation, message + m.option(m.LIST))
    assert codes(sent) == [m.INVALID, m.SERVER, m.SERVER, m.ACK]


@pytest.mark.parametrize("number", [0, 4, 11, 12, 0x7FFFFFFF, 0xFFFFFFFF])
def test_unknown_options_are_skipped(exports: Exports, number: int) -> None:
    sent = say(start(exports), m.option(number, b"whatever") + m.option(m.ABORT))
    assert codes(sent) == [m.UNSUP, m.ACK]


@pytest.mark.parametrize(
    "message", [m.option(m.LIST, length=65537), m.option(m.LIST, length=0xFFFFFFFF), b"\0" * 16]
)
def test_what_cannot_be_an_option_ends_the_connection(exports: Exports, message: bytes) -> None:
    negotiation = start(exports)
    assert say(negotiation, message) == b""
    assert negotiation.phase is Phase.CLOSED
    assert say(negotiation, m.go("main/vda")) == b""


def test_abort_is_answered_whatever_it_carries(exports: Exports) -> None:
    negotiation = start(exports)
    assert codes(say(negotiation, m.option(m.ABORT, b"bye"))) == [m.ACK]
    assert negotiation.phase is Phase.CLOSED


# -- metadata contexts -----------------------------------------------------------------------------


def contexts(stream: bytes) -> list[tuple[int, str]]:
    replies = m.option_replies(stream)
    assert replies[-1].code == m.ACK
    return [(int.from_bytes(r.data[:4], "big"), r.data[4:].decode()) for r in replies[:-1]]


def structured(exports: Exports) -> Negotiation:
    negotiation = start(exports)
    assert codes(say(negotiation, m.option(m.STRUCTURED))) == [m.ACK]
    return negotiation


def test_contexts_need_structured_replies(exports: Exports) -> None:
    for number in (m.LIST_META, m.SET_META):
        data = m.meta_data("main/vda", "base:allocation")
        assert codes(say(start(exports), m.option(number, data))) == [m.INVALID]


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        ([], ["base:allocation", "blockvault:diff:"]),
        (["base:"], ["base:allocation"]),
        (["blockvault:"], ["blockvault:diff:"]),
        (["blockvault:diff:"], ["blockvault:diff:"]),
        (["blockvault:diff:v1"], ["blockvault:diff:v1"]),
        (["base:", "base:allocation"], ["base:allocation"]),
        (["qemu:dirty-bitmap:x", "base:unknown", "nonsense", "", "blockvault:diff:v2"], []),
    ],
)
def test_list_meta_context(
    exports: Exports, volume: MemoryVolume, queries: list[str], names: list[str]
) -> None:
    volume.differing["v1"] = []
    sent = say(structured(exports), m.option(m.LIST_META, m.meta_data("main/vda", *queries)))
    assert contexts(sent) == [(0, name) for name in names]


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        ([], []),
        (["base:"], []),
        (["blockvault:diff:"], []),
        (["base:allocation"], ["base:allocation"]),
        (["blockvault:diff:v1", "base:allocation", "base:allocation", "blockvault:diff:no"],
         ["blockvault:diff:v1", "base:allocation"]),
    ],
)  # fmt: skip
def test_set_meta_context(
    exports: Exports, volume: MemoryVolume, queries: list[str], names: list[str]
) -> None:
    volume.differing["v1"] = []
    negotiation = structured(exports)
    sent = say(negotiation, m.option(m.SET_META, m.meta_data("main/vda", *queries)))
    assert [name for _, name in contexts(sent)] == names
    assert len({number for number, _ in contexts(sent)}) == len(names)
    say(negotiation, m.go("main/vda"))
    assert negotiation.choice is not None
    assert [context.name for _, context in negotiation.choice.contexts] == names


@pytest.mark.parametrize(
    "spoiler",
    [
        m.option(m.SET_META, m.meta_data("main/vda")),
        m.option(m.SET_META, b"garbage"),
        m.option(m.SET_META, m.meta_data("nobody", "base:allocation")),
        m.option(m.SET_META, m.meta_data("v1.0/vda", "base:allocation")),
    ],
)
def test_contexts_are_forgotten_when_set_again(exports: Exports, spoiler: bytes) -> None:
    negotiation = structured(exports)
    say(negotiation, m.option(m.SET_META, m.meta_data("main/vda", "base:allocation")) + spoiler)
    say(negotiation, m.go("main/vda"))
    assert negotiation.choice is not None
    assert negotiation.choice.contexts == ()


def test_a_revision_that_cannot_be_read_refuses_the_option_only(
    exports: Exports, volume: MemoryVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(revision: str) -> None:
        raise RuntimeError("/secret")

    monkeypatch.setattr(volume, "changes", fail)
    negotiation = structured(exports)
    query = m.option(m.SET_META, m.meta_data("main/vda", "blockvault:diff:v1"))
    (reply,) = m.option_replies(say(negotiation, query))
    assert reply.code == m.UNKNOWN
    assert b"secret" not in reply.data
    assert codes(say(negotiation, m.go("main/vda"))) == [m.REP_INFO, m.ACK]


# -- TLS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        m.option(m.LIST), m.go("main/vda"), m.option(m.INFO, m.info_data("main/vda")),
        m.option(m.STRUCTURED), m.option(99), m.option(m.LIST_META, m.meta_data("main/vda")),
    ],
)  # fmt: skip
def test_nothing_is_told_before_tls(exports: Exports, message: bytes) -> None:
    (reply,) = m.option_replies(say(start(exports, tls=True), message))
    assert reply.code == m.TLS_REQD
    assert b"vda" not in reply.data


def test_export_name_before_tls_ends_the_connection(exports: Exports, volume: MemoryVolume) -> None:
    negotiation = start(exports, tls=True)
    assert say(negotiation, m.option(m.EXPORT_NAME, b"main/vda")) == b""
    assert negotiation.phase is Phase.CLOSED
    assert volume.opened == 0


def test_starttls_where_it_is_not_offered(exports: Exports) -> None:
    assert codes(say(start(exports), m.option(m.STARTTLS))) == [m.POLICY]


def test_after_tls_all_options_work_and_starttls_does_not(exports: Exports) -> None:
    negotiation = start(exports, tls=True)
    assert codes(say(negotiation, m.option(m.STARTTLS))) == [m.ACK]
    assert negotiation.phase is Phase.TLS
    negotiation.secured()
    assert codes(say(negotiation, m.option(m.STARTTLS))) == [m.INVALID]
    assert codes(say(negotiation, m.go("main/vda"))) == [m.REP_INFO, m.ACK]


@pytest.mark.parametrize("injected", [b"x", m.option(m.STRUCTURED), m.go("main/vda")])
def test_plaintext_behind_starttls_ends_the_connection(
    exports: Exports, volume: MemoryVolume, injected: bytes
) -> None:
    negotiation = start(exports, tls=True)
    assert say(negotiation, m.option(m.STARTTLS) + injected) == b""
    assert negotiation.phase is Phase.CLOSED
    assert volume.opened == 0
