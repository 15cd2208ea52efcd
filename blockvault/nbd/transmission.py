"""The requests of one client, from the choice of an export to the end.

A connection has one thread, and a second one from its first FLUSH on.  Only one of them reads the
socket, the one that has the *role*; it handles what it reads in order and sends all replies of a
batch with one call.  When a request must wait for a commit, the reader lets go of the role, the
other thread goes on with the requests behind it, and the reply follows when the disk is done.  So a
FLUSH costs the requests behind it nothing, and costs itself no hand-over.  A FLUSH with nothing
behind it, of a device that says it will not take long, is done on the spot; and if a client has
flushed after each write for a while, the device begins before it asks.

    reader:    receive ── parse ── handle ── send ─┬─ receive ...
                                                   └─ FLUSH: hand over the role, commit, send

Replies hold up a client that does not take them.  Requests that wait for a commit have none yet, so
behind very many of them nothing more is read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from blockvault.nbd.budget import Budget, deadline
from blockvault.nbd.channel import Channel
from blockvault.nbd.connection import GATHERED, Connection, Item, Reads
from blockvault.nbd.inbox import Inbox
from blockvault.nbd.negotiation import Choice
from blockvault.nbd.service import Service, large_data

log = logging.getLogger(__name__)

MAX_WAITING = 4096  # for a commit, before more is read; guests have some hundred in the air


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
        self._fewer_wait = threading.Condition(self._guard)
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

    def finish(self) -> None:
        """Handle no more of what has been received; what waits for a commit is still answered."""
        self._ended = True

    def _serve(self) -> None:
        """What each of the threads does."""
        try:
            while self._read_until_commit():
                self._commit()
        except OSError as error:
            log.info("connection lost: %s", error)
            self._end()
        except Exception:
            log.exception("connection ended by a fault of the server")
            self._end()

    def _end(self) -> None:
        """Nothing more is read or sent; the other thread is woken, whatever it waits for."""
        with self._guard:
            self._ended = True
            self._fewer_wait.notify()
        self._channel.until = None
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
                        on_the_spot = self._alone and self._service.quick
                        if not on_the_spot and self._hand_over():
                            return True
                        self._commit()
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
                self._handle(items, large)
                self._channel.until = None
        else:
            self._handle(items)
        self._inbox.handled()

    def _handle(self, items: list[Item], held: int = 0) -> None:
        pieces = self._service.run(items, self._arrived)
        if held:
            self._channel.until = deadline(held)
        if pieces:
            self._channel.send(pieces)
        self._service.account(time.perf_counter() - self._arrived)

    def _must_commit(self) -> bool:
        """Whether this thread is the one to commit for those that wait.

        If the other one is, and very many wait, this one waits until they have been taken.
        """
        waiting = self._service.waiting
        with self._guard:
            while self._committing and len(waiting) >= MAX_WAITING and not self._ended:
                self._fewer_wait.wait()
            if self._committing:
                return False
            self._committing = True
        return True

    @property
    def _alone(self) -> bool:
        """Whether nothing has been received behind what is being handled."""
        return self._inbox.start == self._inbox.stop

    def _hand_over(self) -> bool:
        """See to it that somebody goes on reading while this thread waits for the disk.

        False where no thread can be had.
        """
        if self._helper is None:
            helper = threading.Thread(target=self._serve, name="nbd reader", daemon=True)
            try:
                helper.start()
            except RuntimeError:
                return False
            self._helper = helper
        return True

    def _commit(self) -> None:
        """Answer those that wait, until none is left."""
        service = self._service
        while True:
            with self._guard:
                waiting = service.take_waiting()
                if not waiting:
                    self._committing = False
                    return
                if len(waiting) >= MAX_WAITING:
                    self._fewer_wait.notify()
            self._channel.send(service.commit(waiting, time.perf_counter))


def _is_one_read(items: list[Item]) -> bool:
    item = items[0]
    return len(items) == 1 and type(item) is Reads and len(item.ranges) == 1
