"""Bytes to and from one client, over a plain socket; ``tls`` has the same over TLS.

A channel may be read by one thread while another one writes: a connection goes on reading while a
FLUSH of its own is under way.  Sends do not mix, each goes out whole.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from typing import Protocol

from blockvault.nbd.polling import Poller
from blockvault.nbd.replies import Piece

# From here on the kernel gathers the pieces; below, one join and one send cost less.
GATHER_BYTES = 128 * 1024
MAX_PIECES = min(os.sysconf("SC_IOV_MAX"), 1024)
STEP_BYTES = 1 << 20  # sent with one call at most: each that is done shows that the peer takes some


class Channel(Protocol):
    """A byte stream in both directions.  Errors of the peer or the network are ``OSError``."""

    until: float | None
    """When the peer must be done with what goes on now; the server looks, and ends the stream."""

    moved: int
    """Steps in which the peer took something, or brought some of what is held for it.

    Who finds it as it was has seen nothing move.
    """

    @property
    def sending(self) -> bool:
        """Whether a send goes on, which may wait for the peer to take it."""

    def receive_into(self, view: memoryview) -> int:
        """Wait for bytes, put them into ``view``, return how many; 0 at the end of the stream."""

    def look(self) -> bool:
        """Wait a moment for bytes without going to sleep, if that is possible and may pay."""

    def send(self, pieces: Sequence[Piece]) -> None:
        """Send all pieces, or raise."""

    def settimeout(self, seconds: float | None) -> None:
        """Longest time that a call may wait for the peer; ``TimeoutError`` after it."""

    def close(self) -> None:
        """End the stream as its protocol wants it, then close the socket."""


class Connected:
    """What channels over a connected stream socket have in common."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._sending = threading.Lock()  # what leaves is in the order in which it was made
        self.until: float | None = None
        self.moved = 0
        self.settimeout = connected.settimeout

    @property
    def sending(self) -> bool:
        """See ``Channel``."""
        return self._sending.locked()


class PlainChannel(Connected):
    """A connected stream socket."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self.look = Poller(connected).look
        self.receive_into = connected.recv_into

    def send(self, pieces: Sequence[Piece]) -> None:
        """Send pieces in order, without joining them first when they are long."""
        with self._sending:
            if len(pieces) == 1:
                self._socket.sendall(pieces[0])
            elif sum(map(len, pieces)) < GATHER_BYTES:
                self._socket.sendall(b"".join(pieces))
            else:
                for first in range(0, len(pieces), MAX_PIECES):
                    self._gather(list(pieces[first : first + MAX_PIECES]))
            self.moved += 1

    def _gather(self, pieces: list[Piece]) -> None:
        while pieces:
            sent = self._socket.sendmsg(_step(pieces))
            self.moved += 1
            done = 0
            while done < len(pieces) and sent >= len(pieces[done]):
                sent -= len(pieces[done])
                done += 1
            del pieces[:done]
            if sent:
                pieces[0] = memoryview(pieces[0])[sent:]

    def close(self) -> None:
        self._socket.close()


def _step(pieces: list[Piece]) -> list[Piece]:
    """What is sent of these with one call."""
    room = STEP_BYTES
    for count, piece in enumerate(pieces):
        if len(piece) > room:
            return [*pieces[:count], memoryview(piece)[:room]]
        room -= len(piece)
    return pieces
