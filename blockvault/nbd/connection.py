"""The transmission phase of NBD: bytes in, validated requests out.  No sockets, no device.

``parse`` takes every complete request off a buffer.  A request leaves it in one of four forms:

    Reads, Writes   neighbours of the most frequent kind, gathered: a device takes them in one call
    Request         any other request that is in order
    Refusal         a request that is not, and the error value it gets

so whoever handles them has nothing left to check.  Gathering keeps the order of the requests.

A refused WRITE still has a payload on the wire, of any stated length; it is skipped as it arrives
and never kept.  What cannot be a request at all ends the connection (``closed``): after a wrong
magic nobody knows where the next request begins.
"""

from __future__ import annotations

from typing import NamedTuple

from blockvault.nbd.wire import MAX_PAYLOAD, REQUEST, REQUEST_MAGIC, Command, CommandFlag, Errno
from blockvault.nbd.wire import request_head as head_of

HEADER = REQUEST.size
# A batch ends when its requests have read or changed this much: it bounds the memory that the
# replies of one connection take, and how long a request at its front waits for those behind it.
BATCH_BYTES = 1024 * 1024
REQUEST_COST = 256  # so that requests without data end a batch as well
GATHERED = 256 * 1024  # longer requests gain nothing from company

PLAIN_READ = head_of(Command.READ)
PLAIN_WRITE = head_of(Command.WRITE)

# Flags each command may carry; int(), because the complement of an IntFlag has no unknown bits.
FLAGS: dict[int, int] = {
    Command.READ: int(CommandFlag.FUA | CommandFlag.DF),
    Command.WRITE: int(CommandFlag.FUA),
    Command.FLUSH: int(CommandFlag.FUA),
    Command.TRIM: int(CommandFlag.FUA),
    Command.CACHE: int(CommandFlag.FUA),
    Command.WRITE_ZEROES: int(CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO),
    Command.BLOCK_STATUS: int(CommandFlag.FUA | CommandFlag.REQ_ONE),
}
CHANGING = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)


class Reads:
    """READs without flags, each of 1 to ``GATHERED`` bytes inside the export."""

    __slots__ = ("cookies", "ranges")

    def __init__(self) -> None:
        self.cookies: list[bytes] = []
        self.ranges: list[tuple[int, int]] = []


class Writes:
    """WRITEs without flags, likewise; the views are of the buffer that was parsed."""

    __slots__ = ("cookies", "writes")

    def __init__(self) -> None:
        self.cookies: list[bytes] = []
        self.writes: list[tuple[int, memoryview]] = []


class Request(NamedTuple):
    """Any other request, in order in every respect; ``payload`` is a WRITE's."""

    command: int
    flags: int
    cookie: bytes
    offset: int
    length: int
    payload: memoryview


class Refusal(NamedTuple):
    """A request that is answered with an error and otherwise ignored."""

    command: int
    cookie: bytes
    errno: Errno


Item = Reads | Writes | Request | Refusal
NO_PAYLOAD = memoryview(b"")


def _weight(item: Item) -> int:
    """What a single request takes of the room in a batch: as much as it reads or changes."""
    if type(item) is not Request:
        return 0
    return BATCH_BYTES if item.command == Command.BLOCK_STATUS else item.length


class Connection:
    """What the two sides agreed on, and where in the stream of requests we are."""

    def __init__(self, size: int, *, read_only: bool, structured: bool, contexts: bool) -> None:
        self._size = size
        self._read_only = read_only
        self._structured = structured
        self._contexts = contexts
        self._skip = 0
        self.closed = False
        self.violation = ""

    def parse(self, buffer: memoryview, start: int, stop: int) -> tuple[list[Item], int]:
        """Take requests off ``buffer[start:stop]``; return them and where the rest begins.

        No items means that more bytes must come (``needed`` says how many), or ``closed``.
        """
        items: list[Item] = []
        reads: Reads | None = None
        writes: Writes | None = None
        room = BATCH_BYTES
        limit = self._size
        write_limit = -1 if self._read_only else limit
        unpack = REQUEST.unpack_from
        if self._skip:
            start = self._skipped(start, stop)
        while room > 0 and stop - start >= HEADER:
            head, cookie, offset, length = unpack(buffer, start)
            if head == PLAIN_READ and 0 < length <= GATHERED and offset + length <= limit:
                if reads is None:
                    reads, writes = Reads(), None
                    items.append(reads)
                reads.cookies.append(cookie)
                reads.ranges.append((offset, length))
                start += HEADER
            elif head == PLAIN_WRITE and 0 < length <= GATHERED and offset + length <= write_limit:
                body = start + HEADER
                end = body + length
                if end > stop:
                    break
                if writes is None:
                    reads, writes = None, Writes()
                    items.append(writes)
                writes.cookies.append(cookie)
                writes.writes.append((offset, buffer[body:end]))
                start = end
            else:
                reads = writes = None
                item, start = self._single(buffer, start, stop)
                if item is None:
                    break
                items.append(item)
                length = _weight(item)
            room -= length + REQUEST_COST
        return items, start

    def needed(self, buffer: memoryview, start: int, stop: int) -> int:
        """How long the incomplete request at ``start`` will be, as far as can be told."""
        if stop - start < HEADER:
            return HEADER
        head, _, _, length = REQUEST.unpack_from(buffer, start)
        # Whatever was wrong with this request, parse() would have refused or skipped it.
        return HEADER + (int(length) if head & 0xFFFF == Command.WRITE else 0)

    def _single(self, buffer: memoryview, start: int, stop: int) -> tuple[Item | None, int]:
        """One request that cannot be gathered; None when it is incomplete or the last."""
        head, cookie, offset, length = REQUEST.unpack_from(buffer, start)
        command, flags = head & 0xFFFF, head >> 16 & 0xFFFF
        if head >> 32 != REQUEST_MAGIC:
            self.closed, self.violation = True, "wrong request magic"
            return None, start
        if command == Command.DISC:
            self.closed = True
            return None, start + HEADER
        body = start + HEADER
        errno = self._fault(command, flags, offset, length)
        if command != Command.WRITE:
            payload, end = NO_PAYLOAD, body
        elif errno:
            self._skip = length
            payload, end = NO_PAYLOAD, self._skipped(body, stop)
        else:
            end = body + length
            if end > stop:
                return None, start
            payload = buffer[body:end]
        if errno:
            return Refusal(command, cookie, errno), end
        return Request(command, flags, cookie, offset, length, payload), end

    def _skipped(self, start: int, stop: int) -> int:
        """Pass over as much of a refused payload as is there."""
        skipped = min(self._skip, stop - start)
        self._skip -= skipped
        return start + skipped

    def _fault(self, command: int, flags: int, offset: int, length: int) -> Errno:
        """The error value of a request as such, ``Errno.OK`` if there is nothing against it."""
        allowed = FLAGS.get(command)
        if allowed is None or flags & ~allowed:
            return Errno.EINVAL
        if flags & CommandFlag.DF and not self._structured:
            return Errno.EINVAL
        if command == Command.FLUSH:
            return Errno.EINVAL if offset or length else Errno.OK
        if self._read_only and command in CHANGING:
            return Errno.EPERM
        if offset + length > self._size:
            beyond = command in (Command.WRITE, Command.WRITE_ZEROES)
            return Errno.ENOSPC if beyond else Errno.EINVAL
        if command == Command.BLOCK_STATUS:
            return Errno.OK if self._contexts and length else Errno.EINVAL
        if length > MAX_PAYLOAD and command == Command.READ:
            return Errno.EOVERFLOW if self._structured else Errno.EINVAL
        if length > MAX_PAYLOAD and command == Command.WRITE:
            return Errno.EINVAL
        return Errno.OK
