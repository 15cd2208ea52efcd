"""The handshake of NBD: option requests in, option replies out, until an export is chosen.

No sockets here.  The owner sends ``greeting()``, feeds what arrives, and sends what each ``step()``
returns until it returns None; ``phase`` says what comes next:

    FLAGS ──> OPTIONS ──GO, EXPORT_NAME──> TRANSMISSION   ``choice`` holds the attached export
                │  ▲
       STARTTLS │  │ secured()                            (nothing said before survives TLS)
                ▼  │
               TLS          ABORT, a violation, an export that cannot be had ──> CLOSED

An option is checked completely before anything is done for it.  Only ``GO`` and ``EXPORT_NAME``
open a volume, after everything else about them has been found in order.  One ``step`` answers one
option, so that a peer that pipelines thousands of them cannot make replies pile up in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from blockvault.errors import BadRequest, Busy, NotFound
from blockvault.nbd import contexts
from blockvault.nbd.contexts import Context
from blockvault.nbd.exports import Export, Exports, Volume
from blockvault.nbd.options import (
    Described,
    InvalidOption,
    info_option,
    info_replies,
    meta_option,
    option_name,
    reply,
    server_reply,
    transmission_flags,
)
from blockvault.nbd.wire import (
    CLIENT_FLAGS,
    CONTEXT_ID,
    EXPORT_PADDING,
    EXPORT_REPLY,
    GREETING,
    INIT_MAGIC,
    MAX_OPTION,
    OPTION,
    OPTION_MAGIC,
    HandshakeFlag,
    Option,
    Reply,
)

log = logging.getLogger(__name__)

# int(): the complement of an IntFlag has no bits that the enum does not know.
OFFERED = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)


class Phase(Enum):
    FLAGS = auto()
    OPTIONS = auto()
    TLS = auto()
    TRANSMISSION = auto()
    CLOSED = auto()


class Choice(NamedTuple):
    """What was agreed on: how to speak, and about which export."""

    export: Export
    structured: bool
    contexts: tuple[tuple[int, Context], ...]


class Refused(Exception):
    """An option is answered with an error; the message is for the peer, so it reveals nothing."""

    def __init__(self, code: Reply, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Negotiation:
    """One connection's handshake.  ``tls`` means: nothing but STARTTLS is answered before it."""

    def __init__(self, exports: Exports, *, tls: bool = False) -> None:
        self._exports = exports
        self._tls = tls
        self._encrypted = False
        self._fixed = False
        self._zeroes = True
        self._buffer = bytearray()
        self._forget()
        self.phase = Phase.FLAGS
        self.choice: Choice | None = None

    def _forget(self) -> None:
        self._structured = False
        self._contexts: tuple[tuple[int, Context], ...] = ()
        self._contexts_for = ""

    def greeting(self) -> bytes:
        """What the server says first."""
        return GREETING.pack(INIT_MAGIC, OPTION_MAGIC, OFFERED)

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes from the peer; they are looked at by ``step``."""
        self._buffer += data

    def secured(self) -> None:
        """TLS is up: go on with nothing but what the handshake flags said."""
        self._encrypted = True
        self._forget()
        self.phase = Phase.OPTIONS

    def rest(self) -> bytes:
        """Bytes that came after the last option: the first requests of an eager client."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def step(self) -> bytes | None:
        """Handle one message; return what to send (maybe nothing), or None if more must come."""
        if self.phase is Phase.FLAGS:
            return self._flags()
        if self.phase is Phase.OPTIONS:
            return self._option()
        return None

    def _flags(self) -> bytes | None:
        if len(self._buffer) < CLIENT_FLAGS.size:
            return None
        (flags,) = CLIENT_FLAGS.unpack(self._take(CLIENT_FLAGS.size))
        if flags & ~OFFERED:
            return self._close("unknown client flags")
        self._fixed = bool(flags & HandshakeFlag.FIXED_NEWSTYLE)
        self._zeroes = not flags & HandshakeFlag.NO_ZEROES
        self.phase = Phase.OPTIONS
        return b""

    def _option(self) -> bytes | None:
        if len(self._buffer) < OPTION.size:
            return None
        magic, option, length = OPTION.unpack_from(self._buffer)
        if magic != OPTION_MAGIC:
            return self._close("wrong option magic")
        if length > MAX_OPTION:
            return self._close("oversized option")
        if len(self._buffer) < OPTION.size + length:
            return None
        self._take(OPTION.size)
        return self._answer(option, self._take(length))

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _close(self, why: str) -> bytes:
        log.info("handshake ended: %s", why)
        self.phase = Phase.CLOSED
        return b""

    # -- options -----------------------------------------------------------------------------------

    def _answer(self, option: int, data: bytes) -> bytes:
        try:
            return self._handler(option)(self, option, data)
        except Exception as error:
            if option == Option.EXPORT_NAME:  # the only option that has no error reply
                return self._close("EXPORT_NAME of an export that cannot be had")
            refused = _refusal(error)
            return reply(option, refused.code, refused.message.encode())

    def _handler(self, option: int) -> Handler:
        if not self._fixed and option != Option.EXPORT_NAME:
            return Negotiation._violation
        if self._tls and not self._encrypted and option not in BEFORE_TLS:
            raise Refused(Reply.ERR_TLS_REQD, "TLS is required")
        if option not in HANDLERS:
            raise Refused(Reply.ERR_UNSUP, "unknown option")
        return HANDLERS[option]

    def _violation(self, option: int, data: bytes) -> bytes:
        return self._close("an option that only fixed newstyle has")

    def _abort(self, option: int, data: bytes) -> bytes:
        self._close("the client aborted")
        return reply(option, Reply.ACK)

    def _starttls(self, option: int, data: bytes) -> bytes:
        _no_data(data)
        if self._encrypted:
            raise Refused(Reply.ERR_INVALID, "TLS is already in use")
        if not self._tls:
            raise Refused(Reply.ERR_POLICY, "TLS is not offered here")
        if self._buffer:
            # Whoever sends plaintext behind STARTTLS wants it taken for part of the secured
            # session; an honest client waits for the answer.
            return self._close("plaintext after STARTTLS")
        self._forget()
        self.phase = Phase.TLS
        return reply(option, Reply.ACK)

    def _list(self, option: int, data: bytes) -> bytes:
        _no_data(data)
        listing = self._exports.listing()
        servers = [server_reply(name, description) for name, description in listing]
        return b"".join(servers) + reply(option, Reply.ACK)

    def _structured_reply(self, option: int, data: bytes) -> bytes:
        _no_data(data)
        self._structured = True
        return reply(option, Reply.ACK)

    def _info(self, option: int, data: bytes) -> bytes:
        name, requested = info_option(data)
        export: Described
        if option == Option.GO:
            volume, export = self._choose(name)
        else:
            volume = export = self._exports.find(name)
        flags = transmission_flags(export, self._structured, volume.settled)
        infos = info_replies(option, name, requested, export, flags)
        return infos + reply(option, Reply.ACK)

    def _export_name(self, option: int, data: bytes) -> bytes:
        name = option_name(data)
        volume, export = self._choose(name)
        flags = transmission_flags(export, self._structured, volume.settled)
        return EXPORT_REPLY.pack(export.size, flags) + (EXPORT_PADDING if self._zeroes else b"")

    def _choose(self, name: str) -> tuple[Volume, Export]:
        try:
            volume, export = self._attach(name)
        except Busy:
            # The name may have come to mean another state since it was found, and keeps that now.
            volume, export = self._attach(name)
        chosen = self._contexts if self._contexts_for == name else ()
        self.choice = Choice(export, self._structured, chosen)
        self.phase = Phase.TRANSMISSION
        return volume, export

    def _attach(self, name: str) -> tuple[Volume, Export]:
        volume = self._exports.find(name)
        return volume, self._exports.attach(volume)

    def _list_contexts(self, option: int, data: bytes) -> bytes:
        name, queries = meta_option(data)
        self._need_structured()
        volume = self._exports.find(name)
        names = [] if queries else contexts.offered()
        for query in queries:
            names += contexts.listed(query, volume.changes)
        return _context_replies(option, [(0, text) for text in dict.fromkeys(names)])

    def _set_contexts(self, option: int, data: bytes) -> bytes:
        self._contexts = ()
        name, queries = meta_option(data)
        self._need_structured()
        volume = self._exports.find(name)
        chosen: dict[str, Context] = {}
        for query in queries:
            for context in contexts.selected(query, volume.changes):
                chosen.setdefault(context.name, context)
        self._contexts = tuple(enumerate(chosen.values(), start=1))
        self._contexts_for = name
        return _context_replies(option, [(number, c.name) for number, c in self._contexts])

    def _need_structured(self) -> None:
        if not self._structured:
            raise Refused(Reply.ERR_INVALID, "structured replies come first")


BEFORE_TLS = (Option.STARTTLS, Option.ABORT)

Handler = Callable[[Negotiation, int, bytes], bytes]
HANDLERS: dict[int, Handler] = {
    Option.EXPORT_NAME: Negotiation._export_name,
    Option.ABORT: Negotiation._abort,
    Option.LIST: Negotiation._list,
    Option.STARTTLS: Negotiation._starttls,
    Option.INFO: Negotiation._info,
    Option.GO: Negotiation._info,
    Option.STRUCTURED_REPLY: Negotiation._structured_reply,
    Option.LIST_META_CONTEXT: Negotiation._list_contexts,
    Option.SET_META_CONTEXT: Negotiation._set_contexts,
}


def _no_data(data: bytes) -> None:
    if data:
        raise InvalidOption("this option takes no data")


def _context_replies(option: int, names: list[tuple[int, str]]) -> bytes:
    replies = [
        reply(option, Reply.META_CONTEXT, CONTEXT_ID.pack(number) + name.encode())
        for number, name in names
    ]
    return b"".join(replies) + reply(option, Reply.ACK)


def _refusal(error: Exception) -> Refused:
    """What a peer is told; the text of other exceptions may hold paths and stays in the log."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, InvalidOption):
        return Refused(Reply.ERR_INVALID, str(error))
    if isinstance(error, NotFound | BadRequest):
        log.info("no such export: %s", error)
        return Refused(Reply.ERR_UNKNOWN, "no such export")
    if isinstance(error, Busy):
        log.warning("export in use: %s", error)
        return Refused(Reply.ERR_POLICY, "the export is in use elsewhere")
    log.error("an export cannot be had", exc_info=error)
    return Refused(Reply.ERR_UNKNOWN, "the export is not available")
