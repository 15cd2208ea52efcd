"""Listeners, one thread for each client, limits, and an orderly end.

``Server`` owns no volumes: it is given ``Exports`` and serves them to whoever connects.  A client
is a thread with a blocking socket; Python's threads are enough because a batch of requests costs a
handful of system calls, during which other threads run.

``stop`` ends every connection after what it has received was answered; the last client of each
export flushes and releases it.  After a while no further request is begun, and a client that does
not take its replies is cut off; a flush is waited for.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from blockvault.nbd import sockets
from blockvault.nbd.budget import Budget
from blockvault.nbd.exports import Exports
from blockvault.nbd.peer import Peer
from blockvault.nbd.wire import MAX_PAYLOAD

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
HANDSHAKE_SECONDS = 30.0
LARGE_REQUESTS = 4 * MAX_PAYLOAD  # memory for requests that do not fit into a usual buffer
STOP_SECONDS = 5.0
TICK_SECONDS = 1.0
PAUSE_SECONDS = 0.1  # after an accept that failed because something ran out


class Server:
    """Serves exports on any number of sockets.

    ``tls`` applies to TCP listeners; a unix socket is protected by its mode.
    """

    def __init__(
        self,
        exports: Exports,
        *,
        tls: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
        handshake_seconds: float = HANDSHAKE_SECONDS,
    ) -> None:
        self._exports = exports
        self._tls = tls
        self._max_connections = max_connections
        self._handshake_seconds = handshake_seconds
        self._budget = Budget(LARGE_REQUESTS)
        self._lock = threading.Lock()
        self._peers: dict[Peer, threading.Thread] = {}
        self._listeners: list[tuple[socket.socket, threading.Thread]] = []
        self._unix_paths: list[tuple[Path, int]] = []
        self._stopping = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="nbd clock", daemon=True)
        self._ticker.start()
        self.addresses: list[str] = []
        self.only_listed = False
        """Whether the catalogue refuses what it does not list; for the status."""
        self.refused = 0

    def listen_unix(self, path: Path) -> None:
        """Serve on a unix socket that only its owner can open."""
        complaint = sockets.unnamable(path)
        if complaint:
            log.warning("%s", complaint)
        self.answer_unix(sockets.listen_unix(path), path)

    def answer_unix(self, listener: socket.socket, path: Path) -> None:
        """The same for a socket that listens already; from now on it is the server's."""
        self._unix_paths.append((path, path.stat().st_ino))
        # Whole: whoever reads it may work in another directory.
        self.addresses.append(f"unix:{path.absolute()}")
        self._accept_on(listener, None)

    def listen_tcp(self, host: str, port: int) -> int:
        """Serve on a TCP port, under TLS if the server has a context; return the port."""
        listener = sockets.listen_tcp(host, port)
        bound, port = listener.getsockname()[:2]
        self.addresses.append(f"tcp:{host or bound}:{port}")
        self._accept_on(listener, self._tls)
        return int(port)

    def _accept_on(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        accepting = threading.Thread(
            target=self._accept, args=(listener, tls), name="nbd accept", daemon=True
        )
        self._listeners.append((listener, accepting))
        accepting.start()

    def _accept(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        while not self._stopping.is_set():
            try:
                connected, _ = listener.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                log.warning("accept: %s", error)
                self._stopping.wait(PAUSE_SECONDS)
                continue
            self._welcome(connected, tls)

    def _welcome(self, connected: socket.socket, tls: ssl.SSLContext | None) -> None:
        peer = Peer(
            connected,
            self._exports,
            self._budget,
            tls=tls,
            handshake_seconds=self._handshake_seconds,
        )
        thread = threading.Thread(target=self._serve, args=(peer,), name="nbd client", daemon=True)
        with self._lock:
            welcome = not self._stopping.is_set() and len(self._peers) < self._max_connections
            if welcome:
                self._peers[peer] = thread
        try:
            if welcome:
                thread.start()
                return
        except RuntimeError as error:  # no more threads
            log.warning("cannot serve a client: %s", error)
            self._forget(peer)
        self.refused += 1
        connected.close()

    def _serve(self, peer: Peer) -> None:
        try:
            peer.run()
        finally:
            self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        with self._lock:
            self._peers.pop(peer, None)

    def _tick(self) -> None:
        while not self._stopping.wait(TICK_SECONDS):
            now = time.monotonic()
            for meter in self._exports.meters().values():
                meter.tick(now)
            for peer, _ in self._serving():
                peer.end_if_late(now)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Accept nobody, answer what has been received, flush, release; then return.

        After ``seconds`` no further request is begun, and who does not take its replies is cut off.
        Who waits for the disk is not: what is under way there is made durable in any case.
        """
        self._stopping.set()
        self._remove_sockets()  # while they are listened on: nobody else puts one there meanwhile
        for listener, accepting in self._listeners:
            # close() alone would leave the other thread in accept() for ever.
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            listener.close()
        for peer, _ in self._serving():
            peer.stop()
        self._join(seconds)
        before: dict[Peer, int | None] = {}
        while left := self._serving():
            sending = {peer: peer.sending for peer, _ in left}
            for peer, step in sending.items():
                peer.finish()
                if step is not None and step == before.get(peer):
                    log.warning("%s does not take its replies and is cut off", peer.name)
                    peer.kill()
            before = sending
            self._join(TICK_SECONDS)
        self._ticker.join()

    def _join(self, seconds: float) -> None:
        """Wait until all clients have left, at most so long."""
        deadline = time.monotonic() + seconds
        for _, thread in self._serving():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _serving(self) -> list[tuple[Peer, threading.Thread]]:
        with self._lock:
            return list(self._peers.items())

    def _remove_sockets(self) -> None:
        for path, inode in self._unix_paths:
            try:
                if path.lstat().st_ino == inode:  # not the socket of a successor
                    path.unlink()
            except OSError as error:
                log.info("%s: %s", path, error)

    def status(self) -> dict[str, Any]:
        """For ``status --json``: addresses, clients, and the figures of every export."""
        return {
            "addresses": list(self.addresses),
            "only_listed": self.only_listed,
            "refused": self.refused,
            "large_request_bytes": self._budget.held,
            "clients": [
                {"peer": peer.name, "export": peer.export_name, "since": peer.since}
                for peer, _ in self._serving()
            ],
            "exports": {
                name: {
                    "connections": meter.connections,
                    "connections_ever": meter.connections_ever,
                    "rates": meter.rates(),
                    **meter.total().as_dict(),
                }
                for name, meter in self._exports.meters().items()
            },
        }
