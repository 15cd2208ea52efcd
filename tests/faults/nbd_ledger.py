"""A ledger kept over NBD by a client of its own making, that shares no code with the server.

``python -m tests.faults.nbd_ledger SOCKET EXPORT`` writes the next numbers of the ledger until the
server is gone, and promises each after its FLUSH was answered.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time

from tests.faults import ledger

_MAGIC, _OPTION, _REQUEST, _REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x25609513, 0x67446698
_GO, _INFO, _ACK = 7, 3, 1
READ, WRITE, FLUSH = 0, 1, 3
_TRIES = 500


class Gone(Exception):
    """The server has ended the connection, or answers with an error."""


class Client:
    """One request at a time, simple replies."""

    def __init__(self, path: str, export: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._connect(path)
        self._cookie = 0
        self._negotiate(export.encode())

    def _connect(self, path: str) -> None:
        for attempt in range(_TRIES):
            try:
                return self._socket.connect(path)
            except OSError:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(0.02)

    def _negotiate(self, export: bytes) -> None:
        if struct.unpack(">QQH", self._take(18))[:2] != (_MAGIC, _OPTION):
            raise Gone("not an NBD server")
        body = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self._socket.sendall(struct.pack(">IQII", 3, _OPTION, _GO, len(body)) + body)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self._take(20))
            self._take(length)
            if kind == _ACK:
                return
            if kind != _INFO:
                raise Gone(f"the server refused with {kind:#x}")

    def ask(self, command: int, offset: int, length: int, data: bytes = b"") -> bytes:
        self._cookie += 1
        head = struct.pack(">IHHQQI", _REQUEST, 0, command, self._cookie, offset, length)
        try:
            self._socket.sendall(head + data)
        except OSError as error:
            raise Gone(str(error)) from None
        magic, errno, cookie = struct.unpack(">IIQ", self._take(16))
        if errno:
            raise Gone(f"the server answers with errno {errno}")
        assert (magic, cookie) == (_REPLY, self._cookie)
        return self._take(length) if command == READ else b""

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                more = self._socket.recv(count - len(data))
            except OSError as error:
                raise Gone(str(error)) from None
            if not more:
                raise Gone("the connection was closed")
            data += more
        return data


def count(path: str, export: str) -> None:
    client = Client(path, export)
    number = ledger.audit(client.ask(READ, 0, ledger.SIZE))
    branch = export.partition("/")[0]
    while True:
        number += 1
        at = number % ledger.PLACES * ledger.BLOCK
        client.ask(WRITE, at, ledger.BLOCK, ledger.block(number))
        client.ask(FLUSH, 0, 0)
        os.write(1, f"{branch} {number} flush\n".encode())


if __name__ == "__main__":
    try:
        count(*sys.argv[1:])
    except Gone as gone:
        print(f"gone: {gone}", file=sys.stderr)
