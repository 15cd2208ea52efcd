"""Chunks of an image, hashed beside the process that imports it.

Each hash of a block takes 3 µs, but lets go of Python's lock, and takes 10 µs where other threads
compress and commit.  So where an image is new a process of its own hashes it (``hashing``).  That
is a help and no more: until it is there, and when it is not, what it would say is found here; and
what is as before is too, for then there is nothing to compress, and one hash for each leaf.
"""

from __future__ import annotations

import io
import mmap
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from blockvault import files
from blockvault.errors import IOFailed
from blockvault.ids import ID_SIZE
from blockvault.ops import hashing
from blockvault.ops.hashing import Request

_MUCH = 4096 * ID_SIZE
"""Bytes of answers after which a process is started: most of them are ids of blocks, and to hash
fewer takes less time than to start it."""


class Hasher:
    """Some slots of memory that are filled in turn, and what their leaves hash to.

    ``fill`` and ``answer`` may be called by two threads: who takes an answer knows that the slot
    was filled.
    """

    def __init__(self, slots: int, slot_bytes: int, leaf: int, block: int) -> None:
        self._leaf, self._block = leaf, block
        self._slots, self._slot_bytes = slots, slot_bytes
        self._filled, self._said, self._news = 0, 0, False
        self._asked: deque[tuple[Request, bool]] = deque()
        self._tried = getattr(sys, "frozen", False)  # then the executable is no interpreter
        self._helper: _Helper | None = None
        try:
            self._file = io.FileIO(os.memfd_create("blockvault-chunks"), "r+")
            self._file.truncate(slots * slot_bytes)
            self._view = memoryview(mmap.mmap(self._file.fileno(), slots * slot_bytes))
        except OSError as error:
            raise IOFailed(f"no memory to read into: {error.strerror}") from None

    def fill(self, length: int, before: bytes, read: Callable[[memoryview], None]) -> None:
        """Have the next slot's first ``length`` bytes read, and hashed."""
        start = self._filled % self._slots * self._slot_bytes
        read(self._view[start : start + length])
        self._filled += 1
        if not self._tried and self._said > _MUCH:
            self._tried = True
            with suppress(OSError):
                self._helper = _Helper(self._file.fileno())
        request = Request(start, start + length, self._leaf, self._block, before)
        elsewhere = self._helper is not None and self._news and self._helper.ask(request)
        self._asked.append((request, elsewhere))

    def answer(self) -> tuple[memoryview, bytes]:
        """The chunk that was filled the longest time ago, and what ``hashing.hashed`` says of it.

        The chunk stays as it is until its slot's next turn.
        """
        request, elsewhere = self._asked.popleft()
        said = self._helper.answer() if elsewhere and self._helper else b""
        said = said or request.answered(self._view)
        self._said += len(said)
        self._news = len(said) > (request.stop - request.start) // self._leaf
        return self._view[request.start : request.stop], said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._helper:
            self._helper.close()
        self._file.close()
        # The memory goes with the last who looks at it: a chunk that failed may be in a traceback.


class _Helper:
    """The other process.  What cannot be asked or is not answered its caller does without."""

    def __init__(self, memory: int) -> None:
        """``OSError`` if it cannot be started."""
        self._ready = self._ended = False
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        to_read = -1
        try:
            # What its interpreter prints must not get into the chunks.
            to_read = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
            # Its own group: Ctrl-C is ours to handle.  -P: no module of the working directory.
            self._process = subprocess.Popen(
                [sys.executable or "", "-P", hashing.__file__],
                stdin=theirs.fileno(),
                stdout=to_read,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
            if to_read >= 0:
                os.close(to_read)

    def ask(self, request: Request) -> bool:
        """Ask for a chunk; False if nobody is there to answer."""
        if self._ended:
            return False
        try:
            if not self._ready:
                if not files.readable(self._socket.fileno()):
                    return False
                self._ready = self._socket.recv(hashing.LONGEST) == hashing.READY
            return self._ready and bool(self._socket.send(request.packed()))
        except OSError:
            return False

    def answer(self) -> bytes:
        """The answer to what was asked first; empty if the process ended, and from then on.

        One that is killed with requests before it makes this socket tell of that first: what it
        had answered comes behind, and would be taken for the answer to a later chunk.
        """
        said = b""
        if not self._ended:
            with suppress(OSError):
                said = self._socket.recv(hashing.LONGEST)
            self._ended = not said
        return said

    def close(self) -> None:
        """End the process: it has nothing to lose."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
