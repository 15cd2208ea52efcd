"""Validated requests in, replies out: the one place of the edge that calls a device.

Everything is done in the order in which it came.  What must be durable before it is answered, a
FLUSH and any change with FUA, is put on ``waiting``; whoever owns the service calls ``commit`` for
them, on another thread if requests should go on meanwhile.  One commit answers all that wait.

An exception of the device becomes the error value of the request that met it.  A batch that fails
is done again one by one, which is harmless (the same bytes to the same place) and tells exactly
which of its requests failed.  No text of an exception reaches the peer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from blockvault.errors import VaultError
from blockvault.nbd import contexts, replies, stats
from blockvault.nbd.connection import (
    CHANGING,
    NO_PAYLOAD,
    Item,
    Reads,
    Refusal,
    Request,
    Writes,
)
from blockvault.nbd.exports import read_many_of, write_many_of
from blockvault.nbd.negotiation import Choice
from blockvault.nbd.replies import Piece
from blockvault.nbd.stats import Counters
from blockvault.nbd.wire import MAX_EXTENTS, MAX_PAYLOAD, Command, CommandFlag, Errno, errno_of

log = logging.getLogger(__name__)

CACHE_STEP = 1024 * 1024
_READ = int(Command.READ)
SURE = 8
"""Writes in turn that were followed by a FLUSH, after which the next one is expected to be."""
MAX_LOGGED = 20  # failures of one connection that are logged; a damaged disk repeats itself

KINDS: dict[int, int] = {
    Command.READ: stats.READ,
    Command.WRITE: stats.WRITE,
    Command.FLUSH: stats.FLUSH,
    Command.TRIM: stats.TRIM,
    Command.CACHE: stats.CACHE,
    Command.WRITE_ZEROES: stats.ZERO,
    Command.BLOCK_STATUS: stats.STATUS,
}


class Waiting(NamedTuple):
    """A request whose reply must wait for a commit."""

    cookie: bytes
    kind: int
    arrived: float


class Service:
    """Handles the requests of one connection."""

    def __init__(self, choice: Choice, counters: Counters) -> None:
        self._export = choice.export
        self._device = choice.export.device
        self._structured = choice.structured
        self._contexts = choice.contexts
        self._counters = counters
        self._counting = threading.Lock()  # run() and commit() may be on two threads
        self._read_many = read_many_of(self._device)
        self._write_many = write_many_of(self._device)
        self._done: list[tuple[int, int]] = []
        self._logged = 0
        self._flush_ahead: Callable[[], None] = getattr(self._device, "flush_ahead", lambda: None)
        self._written = self._alternating = 0
        self.waiting: deque[Waiting] = deque()

    def run(self, items: list[Item], arrived: float) -> list[Piece]:
        """Handle requests that were read at ``arrived``; return the replies that are due now."""
        pieces: list[Piece] = []
        for item in items:
            if type(item) is Reads:
                pieces += self._reads(item)
            elif type(item) is Writes:
                pieces.append(self._writes(item))
            elif type(item) is Request:
                pieces += self._request(item, arrived)
            elif type(item) is Refusal:
                pieces.append(self._refuse(item))
        return pieces

    def account(self, seconds: float) -> None:
        """Count what ``run`` has answered since the last time; it took this long."""
        with self._counting:
            for kind, count in self._done:
                self._counters.took(kind, count, seconds)
        self._done.clear()

    def take_waiting(self) -> list[Waiting]:
        """All that wait for a commit now; they wait no longer.  Others may be added meanwhile."""
        return [self.waiting.popleft() for _ in range(len(self.waiting))]

    def anticipate(self) -> None:
        """Nothing else has come: if each write was followed by a FLUSH of late, begin with it."""
        if self._written == 1 and self._alternating >= SURE and self.quick:
            self._flush_ahead()

    def _count_flush(self) -> None:
        """Whether clients flush after each write is told by what they did last."""
        self._alternating = self._alternating + 1 if self._written == 1 else 0
        self._written = 0

    @property
    def quick(self) -> bool:
        """Whether a commit is likely to take no longer than handing over to another thread."""
        return getattr(self._device, "quick_flush", False)

    def commit(self, waiting: list[Waiting], clock: Callable[[], float]) -> list[Piece]:
        """Make all that was written so far durable; return the replies of those that waited."""
        errno = Errno.OK
        if not self._export.read_only:
            try:
                self._export.commit.flush()
            except Exception as error:
                errno = self._failed("flush", error)
        now = clock()
        with self._counting:
            for _, kind, arrived in waiting:
                self._counters.took(kind, 1, now - arrived)
            self._counters.errors += len(waiting) if errno else 0
        if errno:
            return [replies.failure(w.cookie, errno, self._structured) for w in waiting]
        return [replies.successes([w.cookie for w in waiting])]

    # -- batches -----------------------------------------------------------------------------------

    def _reads(self, item: Reads) -> list[Piece]:
        ranges = item.ranges
        try:
            contents = self._read_many(ranges)
            pieces = replies.data_replies(item.cookies, ranges, contents, self._structured)
        except Exception:
            return self._one_by_one(
                Request(Command.READ, 0, cookie, offset, length, NO_PAYLOAD)
                for cookie, (offset, length) in zip(item.cookies, ranges, strict=True)
            )
        self._counters.bytes_read += sum([length for _, length in ranges])
        self._done.append((stats.READ, len(ranges)))
        return pieces

    def _writes(self, item: Writes) -> Piece:
        writes = item.writes
        try:
            self._write_many(writes)
        except Exception:
            return b"".join(
                self._one_by_one(
                    Request(Command.WRITE, 0, cookie, offset, len(data), data)
                    for cookie, (offset, data) in zip(item.cookies, writes, strict=True)
                )
            )
        self._counters.bytes_written += sum([len(data) for _, data in writes])
        self._written += 1
        self._done.append((stats.WRITE, len(writes)))
        return replies.successes(item.cookies)

    def _one_by_one(self, requests: Iterable[Request]) -> list[Piece]:
        pieces: list[Piece] = []
        for request in requests:
            pieces += self._request(request, 0.0)
        return pieces

    # -- single requests ---------------------------------------------------------------------------

    def _refuse(self, refusal: Refusal) -> Piece:
        self._counters.errors += 1
        self._done.append((stats.REFUSED, 1))
        return replies.failure(refusal.cookie, refusal.errno, self._structured)

    def _request(self, request: Request, arrived: float) -> list[Piece]:
        kind = KINDS[request.command]
        try:
            pieces = HANDLERS[request.command](self, request)
        except Exception as error:
            errno = self._failed(Command(request.command).name, error)
            self._counters.errors += 1
            self._done.append((kind, 1))
            return [replies.failure(request.cookie, errno, self._structured)]
        if request.command == Command.FLUSH or (
            request.flags & CommandFlag.FUA and request.command in CHANGING
        ):
            self.waiting.append(Waiting(request.cookie, kind, arrived))
            return []
        self._done.append((kind, 1))
        return pieces

    def _failed(self, what: str, error: Exception) -> Errno:
        if self._logged < MAX_LOGGED:
            self._logged += 1
            expected = isinstance(error, VaultError)
            log.error("%s: %s: %s", self._export.name, what, error, exc_info=not expected)
        return errno_of(error)

    def _read(self, request: Request) -> list[Piece]:
        if not request.length:
            return [replies.empty_read(request.cookie, self._structured)]
        data = self._device.read(request.offset, request.length)
        wanted = [(request.offset, request.length)]
        pieces = replies.data_replies([request.cookie], wanted, [data], self._structured)
        self._counters.bytes_read += request.length
        return pieces

    def _write(self, request: Request) -> list[Piece]:
        if request.length:
            self._device.write(request.offset, request.payload)
            self._counters.bytes_written += request.length
        return self._success(request)

    def _zero(self, request: Request) -> list[Piece]:
        # NO_HOLE asks that later writes find their space reserved, which no store that keeps every
        # version can promise; what it can, zeros, is the same.  FAST_ZERO is always kept: zeroing
        # a range costs one event and no data.
        if request.length:
            self._device.zero(request.offset, request.length)
        return self._success(request)

    def _trim(self, request: Request) -> list[Piece]:
        if request.length:
            self._device.trim(request.offset, request.length)
        return self._success(request)

    def _cache(self, request: Request) -> list[Piece]:
        stop = request.offset + min(request.length, MAX_PAYLOAD)
        for offset in range(request.offset, stop, CACHE_STEP):
            self._device.read(offset, min(CACHE_STEP, stop - offset))
        return self._success(request)

    def _flush(self, request: Request) -> list[Piece]:
        self._count_flush()
        return self._success(request)

    def _block_status(self, request: Request) -> list[Piece]:
        one = request.flags & CommandFlag.REQ_ONE
        limit = 1 if one else MAX_EXTENTS // len(self._contexts)
        answers = [
            (number, contexts.descriptors(c, self._device, request.offset, request.length, limit))
            for number, c in self._contexts
        ]
        return [replies.block_status(request.cookie, answers)]

    def _success(self, request: Request) -> list[Piece]:
        return [replies.successes([request.cookie])]


HANDLERS: dict[int, Callable[[Service, Request], list[Piece]]] = {
    Command.READ: Service._read,
    Command.WRITE: Service._write,
    Command.FLUSH: Service._flush,
    Command.TRIM: Service._trim,
    Command.CACHE: Service._cache,
    Command.WRITE_ZEROES: Service._zero,
    Command.BLOCK_STATUS: Service._block_status,
}


def large_data(items: list[Item]) -> int:
    """Bytes that the replies to single READs among ``items`` will take."""
    return sum([item.length for item in items if type(item) is Request and item.command == _READ])
