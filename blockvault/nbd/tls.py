"""TLS for NBD: certificates on both sides, and a channel that two threads may use.

The server shows its certificate and wants one from the client, signed by the given authority;
there are no passwords and no anonymous clients.  TLS 1.2 is the oldest version spoken.

Python's ``SSLSocket`` must not be read by one thread while another one writes it, which is just
what a connection does during a FLUSH.  So the TLS engine stands apart from the socket: it works on
memory, under a lock and without waiting, and only the waiting for the socket happens outside.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from blockvault.errors import BadRequest
from blockvault.nbd.channel import Connected
from blockvault.nbd.replies import Piece

RECORDS = 256 * 1024  # bytes taken from the socket, or made into records, at once


def server_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """Settings for a server that has ``certificate`` and trusts clients signed by ``authority``.

    All are PEM files; ``BadRequest`` names what cannot be used.
    """

    def no_password() -> str:
        # Without this function the passphrase would be asked for on the terminal.
        raise BadRequest(
            f"the key {key} is encrypted; a server needs one that is not, as "
            "'openssl pkey -in KEY -out PLAIN' writes it"
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(certificate, key, no_password)
    except (OSError, ValueError) as error:
        raise BadRequest(f"cannot use certificate {certificate} with key {key}: {error}") from None
    try:
        context.load_verify_locations(authority)
    except (OSError, ValueError) as error:
        raise BadRequest(f"cannot use {authority} as authority for clients: {error}") from None
    return context


class TLSChannel(Connected):
    """A connected stream socket under TLS, server side.  See ``channel.Channel``."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(connected)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._engine = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._lock = threading.Lock()  # the engine and its memory
        self._received = memoryview(bytearray(RECORDS))

    def handshake(self, before_wait: Callable[[], None]) -> None:
        """Secure the stream; ``OSError`` if the client cannot or will not.

        ``before_wait`` is called each time the client must say more; it may give up by raising.
        """
        while True:
            try:
                self._engine.do_handshake()
            except ssl.SSLWantReadError:
                self._push()
                before_wait()
                if not self._pull():
                    raise ConnectionResetError("the client left during the handshake") from None
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._push()  # the alert that tells the client why
                raise
            else:
                self._push()
                return

    def peer_name(self) -> str:
        """Common name of the client's certificate, or an empty string."""
        certificate: dict[str, Any] = self._engine.getpeercert() or {}
        names = [pair for part in certificate.get("subject", ()) for pair in part]
        return str(dict(names).get("commonName", ""))

    def look(self) -> bool:
        """What the socket has tells little of what there is to receive."""
        return False

    def receive_into(self, view: memoryview) -> int:
        """Wait for bytes and put as many records' worth into ``view`` as there are.

        A stream that is cut ends as a plain one does: what did not arrive whole is not done.
        """
        while True:
            taken = self._decrypt(view)
            if taken is not None:
                return taken
            self._push()
            if not self._pull():
                return 0

    def _decrypt(self, view: memoryview) -> int | None:
        """Bytes put into ``view``, 0 at the end of the stream, None if the engine wants more."""
        taken = 0
        with self._lock:
            while taken < len(view):
                try:
                    size = self._engine.read(len(view) - taken, view[taken:])
                except ssl.SSLWantReadError:
                    return taken or None
                except ssl.SSLZeroReturnError:
                    return taken
                if not size:
                    return taken
                taken += int(size)
        return taken

    def _pull(self) -> bool:
        """Hand the engine what the socket has; waits.  False if that is at its end.

        The engine is not told of an end: it would send no more, neither replies nor a goodbye.
        """
        size = self._socket.recv_into(self._received)
        with self._lock:
            self._incoming.write(self._received[:size])
        return size > 0

    def _push(self) -> None:
        """Send what the engine has made of its own accord."""
        if self._outgoing.pending:
            with self._sending:
                with self._lock:
                    records = self._outgoing.read()
                self._socket.sendall(records)

    def send(self, pieces: Sequence[Piece]) -> None:
        """Encrypt and send all pieces."""
        with self._sending:
            for some in _gathered(pieces):
                view = memoryview(some[0] if len(some) == 1 else b"".join(some))
                while view:
                    with self._lock:
                        view = view[self._engine.write(view[:RECORDS]) :]
                        records = self._outgoing.read()
                    self._socket.sendall(records)
                    self.moved += 1

    def close(self) -> None:
        """Say goodbye, without waiting for an answer, and close the socket."""
        with contextlib.suppress(OSError):
            with self._lock, contextlib.suppress(ssl.SSLError):
                self._engine.unwrap()
            self._socket.settimeout(1.0)
            self._push()
        self._socket.close()


def _gathered(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Pieces in order, those to be joined together: a long reply is not to be there twice."""
    some: list[Piece] = []
    size = 0
    for piece in pieces:
        if some and size + len(piece) > RECORDS:
            yield some
            some, size = [], 0
        some.append(piece)
        size += len(piece)
    yield some
