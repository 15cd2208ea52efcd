"""One client from greeting to goodbye.

What was agreed on in the handshake is served by ``transmission``.  Whatever a peer does ends its
own connection at worst.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time

from blockvault.nbd.budget import Budget, latest
from blockvault.nbd.channel import Channel, PlainChannel
from blockvault.nbd.exports import Exports
from blockvault.nbd.negotiation import Choice, Negotiation, Phase
from blockvault.nbd.service import Service
from blockvault.nbd.sockets import peer_of, prepare
from blockvault.nbd.tls import TLSChannel
from blockvault.nbd.transmission import Transmission

log = logging.getLogger(__name__)

HANDSHAKE_BYTES = 4096  # received at once before an export is chosen


class Peer:
    """A connected client.  ``run`` serves it; ``stop`` and ``kill`` may come from other threads."""

    def __init__(
        self,
        connected: socket.socket,
        exports: Exports,
        budget: Budget,
        *,
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
    ) -> None:
        self._socket = connected
        self._exports = exports
        self._budget = budget
        self._tls = tls
        self._deadline = time.monotonic() + handshake_seconds
        self._channel: Channel = PlainChannel(connected)
        self._served: Transmission | None = None
        self._moved, self._moved_at = 0, time.monotonic()
        self.name = "?"
        self.export_name: str | None = None
        self.since = time.time()

    def stop(self) -> None:
        """Read no more; what has been received is handled and answered."""
        self._shutdown(socket.SHUT_RD)

    def finish(self) -> None:
        """Handle no more of what has been received, either."""
        served = self._served
        if served is not None:
            served.finish()

    def kill(self) -> None:
        """Wake every thread that waits for this peer; nothing more is sent."""
        self._shutdown(socket.SHUT_RDWR)

    @property
    def sending(self) -> int | None:
        """Which step of a reply the client is being sent, if it is: the same after a while, and it
        does not take it.
        """
        moved = self._channel.moved
        return moved if self._channel.sending else None

    def end_if_late(self, now: float) -> None:
        """Kill it if its client takes too long for a large request, for which others may wait.

        Called every now and then.
        """
        until, moved = self._channel.until, self._channel.moved
        if until is None or moved != self._moved:
            self._moved, self._moved_at = moved, now
        if until is not None and now > latest(until, self._moved_at):
            log.warning("%s takes too long for a large request and is cut off", self.name)
            self.kill()

    def _shutdown(self, how: int) -> None:
        with contextlib.suppress(OSError):  # it may be gone already
            self._socket.shutdown(how)

    def run(self) -> None:
        """Serve the client until it leaves, misbehaves, or is stopped."""
        try:
            prepare(self._socket)
            self.name = peer_of(self._socket)
            agreed = self._handshake()
            if agreed is not None:
                self._transmission(*agreed)
        except OSError as error:
            log.info("%s: %s", self.name, error)
        except Exception:
            log.exception("%s: connection ended by a fault of the server", self.name)
        finally:
            self._channel.close()

    # -- handshake ---------------------------------------------------------------------------------

    def _handshake(self) -> tuple[Choice, bytes] | None:
        """What was agreed on and the first bytes behind it; None if it came to nothing."""
        negotiation = Negotiation(self._exports, tls=self._tls is not None)
        received = memoryview(bytearray(HANDSHAKE_BYTES))
        self._respect_deadline()
        self._channel.send([negotiation.greeting()])
        while True:
            self._respect_deadline()
            reply = negotiation.step()
            if reply:
                self._send_option_reply(negotiation, reply)
            if negotiation.phase is Phase.TLS:
                self._secure()
                negotiation.secured()
            elif negotiation.phase is Phase.TRANSMISSION:
                self._channel.settimeout(None)
                assert negotiation.choice is not None
                return negotiation.choice, negotiation.rest()
            elif negotiation.phase is Phase.CLOSED:
                return None
            elif reply is None:
                size = self._channel.receive_into(received)
                if not size:
                    return None
                negotiation.feed(received[:size])

    def _send_option_reply(self, negotiation: Negotiation, reply: bytes) -> None:
        try:
            self._channel.send([reply])
        except OSError:
            if negotiation.choice is not None:
                self._exports.release(negotiation.choice.export)
            raise

    def _respect_deadline(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the handshake took too long")
        self._channel.settimeout(left)

    def _secure(self) -> None:
        assert self._tls is not None
        secured = TLSChannel(self._socket, self._tls)
        secured.handshake(self._respect_deadline)
        self._channel = secured
        self.name = f"{self.name}, {secured.peer_name()}"

    # -- transmission ------------------------------------------------------------------------------

    def _transmission(self, choice: Choice, first: bytes) -> None:
        export = choice.export
        self.export_name = export.name
        log.info("%s: serving %s", self.name, export.name)
        counters = export.meter.connect()
        try:
            service = Service(choice, counters)
            self._served = Transmission(self._channel, choice, service, self._budget, first)
            self._served.run(self.kill)
        finally:
            self._served = None  # each knows the other: its buffer would stay for a while
            export.meter.disconnect(counters)
            self._exports.release(export)
            log.info("%s: left %s", self.name, export.name)
