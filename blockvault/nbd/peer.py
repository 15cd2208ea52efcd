"""One client from greeting to goodbye.

A connection has one thread, and a second one from its first FLUSH on.  Only one of them reads the
socket, the one that has the *role*; it handles what it reads in order and sends all replies of a
batch with one call.  When a request must wait for a commit, the reader lets go of the role, the
other thread goes on with the requests behind it, and the reply follows when the disk is done.  So a
FLUSH costs the requests behind it nothing, and costs itself no hand-over.  A FLUSH with nothing
behind it, of a device that says it will not take long, is done on the spot; and if a client has
flushed after each write for a while, the device begins before it asks.

    reader:    receive ── parse ── handle ── send ─┬─ receive ...
                                                   └─ FLUSH: hand over the role, commit, send

Whatever a peer does ends its own connection at worst.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable

from blockvault.nbd.budget import Budget
from blockvault.nbd.channel import Channel, PlainChannel
from blockvault.nbd.connection import GATHERED, Connection, Item, Reads
from blockvault.nbd.exports import Exports
from blockvault.nbd.inbox import STALL_SECONDS, Inbox
from blockvault.nbd.negotiation import Choice, Negotiation, Phase
from blockvault.nbd.service import Service, large_data
from blockvault.nbd.sockets import peer_of, prepare
from blockvault.nbd.tls import TLSChannel

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
        self.name = "?"
        self.export_name: str | None = None
        self.since = time.time()

    def stop(self) -> None:
        """Read no more; what has been received is handled and answered."""
        self._shutdown(socket.SHUT_RD)

    def kill(self) -> None:
        """Wake every thread that waits for this peer; nothing more is sent."""
        self._shutdown(socket.SHUT_RDWR)

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
            Transmission(self._channel, choice, Service(choice, counters), self._budget, first).run(
                self.kill
            )
        finally:
            export.meter.disconnect(counters)
            self._exports.release(export)
            log.info("%s: left %s", self.name, export.name)


class Transmission:
    """The requests of one client, served by one or two threads."""

    def __init__(
        self, channel: Channel, choice: Choice, service: Service, budget: Budget, first: bytes
    ) -> None:
        export = choice.export
        self._channel = channel
        self._service = service
        self._budget = budget
        self._inbox = Inbox(channel, budget, first)
        self._connection = Connection(
            export.size,
            read_only=export.read_only,
            structured=choice.structured,
            contexts=bool(choice.contexts),
        )
        self._role = threading.Lock()
        self._guard = threading.Lock()
        self._committing = False
        self._ended = False
        self._arrived = time.perf_counter()
        self._helper: threading.Thread | None = None
        self._kill: Callable[[], None] = lambda: None

    def run(self, kill: Callable[[], None]) -> None:
        """Serve until the client leaves; ``kill`` must wake threads that wait for it."""
        self._kill = kill
        try:
            self._serve()
        finally:
            if self._helper is not None:
                self._helper.join()
            self._inbox.close()

    def _serve(self) -> None:
        """What each of the threads does."""
        try:
            while self._read_until_commit():
                self._commit()
        except OSError as error:
            log.info("connection lost: %s", error)
            self._ended = True
            self._kill()
        except Exception:
            log.exception("connection ended by a fault of the server")
            self._ended = True
            self._kill()

    def _read_until_commit(self) -> bool:
        """Wait for the role, then serve requests; True if this thread has to commit."""
        reading = False
        with self._role:
            while not self._ended:
                inbox, connection = self._inbox, self._connection
                items, inbox.start = connection.parse(inbox.view, inbox.start, inbox.stop)
                if items:
                    self._answer(items)
                    reading = _is_one_read(items)
                    if self._service.waiting and self._must_commit():
                        if self._alone and self._service.quick:
                            self._commit()
                        else:
                            self._hand_over()
                            return True
                    elif self._alone:
                        self._service.anticipate()
                elif connection.closed or not self._receive(soon=reading):
                    self._ended = True
        return False

    def _receive(self, *, soon: bool) -> bool:
        """Receive something; ``soon`` if a client that waits for each read has got its answer.

        One that does not gets its batches decoded in parallel, the larger the better.
        """
        inbox = self._inbox
        if soon:
            self._channel.look()
        needed = self._connection.needed(inbox.view, inbox.start, inbox.stop)
        received = inbox.fill(needed)
        self._arrived = time.perf_counter()
        return received

    def _answer(self, items: list[Item]) -> None:
        large = large_data(items)
        if large > GATHERED:
            with self._budget.hold(large):
                self._channel.settimeout(STALL_SECONDS)
                self._handle(items)
                self._channel.settimeout(None)
        else:
            self._handle(items)
        self._inbox.handled()

    def _handle(self, items: list[Item]) -> None:
        pieces = self._service.run(items, self._arrived)
        if pieces:
            self._channel.send(pieces)
        self._service.account(time.perf_counter() - self._arrived)

    def _must_commit(self) -> bool:
        """Whether this thread is the one to commit for those that wait."""
        with self._guard:
            if self._committing:
                return False
            self._committing = True
        return True

    @property
    def _alone(self) -> bool:
        """Whether nothing has been received behind what is being handled."""
        return self._inbox.start == self._inbox.stop

    def _hand_over(self) -> None:
        """See to it that somebody goes on reading while this thread waits for the disk."""
        if self._helper is None:
            self._helper = threading.Thread(target=self._serve, name="nbd reader", daemon=True)
            self._helper.start()

    def _commit(self) -> None:
        """Answer those that wait, until none is left."""
        service = self._service
        while True:
            with self._guard:
                waiting = service.take_waiting()
                if not waiting:
                    self._committing = False
                    return
            self._channel.send(service.commit(waiting, time.perf_counter))


def _is_one_read(items: list[Item]) -> bool:
    item = items[0]
    return len(items) == 1 and type(item) is Reads and len(item.ranges) == 1
