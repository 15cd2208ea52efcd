"""A migration stream on its way in: memory into a file in memory, all else kept as it comes."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading
from dataclasses import dataclass

from blockvault.errors import ToolFailed, VaultError
from blockvault.vm import stream


@dataclass(frozen=True, slots=True)
class Saved:
    """Memory as a file in memory, that ``close`` gives up, and all else of one instant."""

    fd: int
    layout: stream.Layout
    tail: bytes

    def close(self) -> None:
        os.close(self.fd)


class Receiving:
    """A stream, taken apart on a thread of its own."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._fd = os.memfd_create("memory", os.MFD_CLOEXEC)
        self._map: mmap.mmap | None = None
        self._error: Exception | None = None
        self._told: tuple[stream.Layout, bytes] | None = None
        self._thread = threading.Thread(target=self._take, name="stream", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        try:
            with self._peer.makefile("rb", buffering=1 << 20) as source:
                self._told = stream.take_apart(source, self._allocate)
        except Exception as error:
            self._error = error
            self._peer.close()  # QEMU would wait for ever

    def _allocate(self, size: int) -> stream.Write:
        os.ftruncate(self._fd, size)
        memory = self._map = mmap.mmap(self._fd, size)
        fresh = bytearray(size // stream.PAGE)

        def write(at: int, page: bytes) -> None:
            # A page of zeros that never had anything else stays a hole.
            if fresh[at // stream.PAGE] or page.count(0) != stream.PAGE:
                fresh[at // stream.PAGE] = 1
                memory[at : at + stream.PAGE] = page

        return write

    def check(self) -> None:
        if isinstance(self._error, VaultError):
            raise self._error
        if self._error is not None:
            raise ToolFailed(f"QEMU's stream could not be read: {self._error}", kind="bad-stream")

    def get(self) -> Saved:
        self._thread.join()
        self.check()
        assert self._told is not None
        self._unmap()
        return Saved(self._fd, *self._told)

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._unmap()
        os.close(self._fd)

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
