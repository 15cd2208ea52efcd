"""The receive buffer of one connection: large for many small requests, exact for a large one.

Usually there is one buffer of fixed size.  Requests are parsed where they lie; what remains, the
beginning of the next one, is moved to the front only when the room behind it runs out.  A request
that does not fit gets a buffer of its own, of just its size and paid for from the budget, which
is gone again as soon as the request has been handled.
"""

from __future__ import annotations

from blockvault.nbd.budget import Budget, deadline
from blockvault.nbd.channel import Channel

BUFFER_BYTES = 1024 * 1024


class Inbox:
    """``view[start:stop]`` is what has been received and not yet been parsed."""

    def __init__(self, channel: Channel, budget: Budget, first: bytes) -> None:
        self._channel = channel
        self._budget = budget
        self._usual = memoryview(bytearray(BUFFER_BYTES))
        self._held = 0
        self.view = self._usual
        self.start = 0
        self.stop = len(first)
        self.view[: self.stop] = first

    def fill(self, needed: int) -> bool:
        """Receive something; False at the end of the stream.

        ``needed`` is the length of the request that begins at ``start``; there will be room for it.
        """
        if self.start == self.stop:
            self.start = self.stop = 0
        if self.start + needed > len(self.view):
            self._make_room(needed)
        received = self._channel.receive_into(self.view[self.stop :])
        self._channel.moved += 1
        self.stop += received
        if self._held and (self.stop == len(self.view) or not received):
            self._channel.until = None  # no more is expected, and the disk may take its time
        return received > 0

    def _make_room(self, needed: int) -> None:
        kept = self.stop - self.start
        old = self.view[self.start : self.stop]
        if needed > len(self.view):
            self._budget.take(needed)
            self._held = needed
            self._channel.until = deadline(needed)
            self.view = memoryview(bytearray(needed))
        self.view[:kept] = old
        self.start, self.stop = 0, kept

    def handled(self) -> None:
        """All that was parsed has been handled: a large buffer is not needed any more."""
        if self._held:
            # It was of just the request's size, so nothing is left in it.
            self.view, self.start, self.stop = self._usual, 0, 0
            self.close()

    def close(self) -> None:
        """Give back what is held of the budget."""
        held, self._held = self._held, 0
        if held:
            self._budget.give(held)
