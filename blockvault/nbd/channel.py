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


class Channel(Protocol):
    """A byte stream in both directions.  Errors of the peer or the network are ``OSError``."""

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


class PlainChannel:
    """A connected stream socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._sending = threading.Lock()
        self.look = Poller(connected).look
        self.receive_into = connected.recv_into
        self.settimeout = connected.settimeout

    def send(self, pieces: Sequence[Piece]) -> None:
        with self._sending:
            send_pieces(self._socket, pieces)

    def close(self) -> None:
        self._socket.close()


def send_pieces(connected: socket.socket, pieces: Sequence[Piece]) -> None:
    """Send pieces in order, without joining them first when they are long."""
    if len(pieces) == 1:
        connected.sendall(pieces[0])
    elif sum(map(len, pieces)) < GATHER_BYTES:
        connected.sendall(b"".join(pieces))
    else:
        for first in range(0, len(pieces), MAX_PIECES):
            _gather(connected, list(pieces[first : first + MAX_PIECES]))


def _gather(connected: socket.socket, pieces: list[Piece]) -> None:
    while pieces:
        sent = connected.sendmsg(pieces)
        done = 0
        while done < len(pieces) and sent >= len(pieces[done]):
            sent -= len(pieces[done])
            done += 1
        del pieces[:done]
        if sent:
            pieces[0] = memoryview(pieces[0])[sent:]
