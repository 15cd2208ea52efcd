"""Counters of a running server: requests, bytes, errors, rates, and how long requests took.

A connection owns one ``Counters`` and is the only one to change it, so no two connections meet at
a lock; the totals of an export are the sum over its connections, made when somebody asks.
A request's time runs from the moment its last byte was read to the moment its reply was handed to
the socket.  Requests that were answered together have taken equally long: the time of the batch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

KINDS = ("read", "write", "zero", "trim", "flush", "cache", "status", "refused")
READ, WRITE, ZERO, TRIM, FLUSH, CACHE, STATUS, REFUSED = range(len(KINDS))
BUCKETS = 32  # bucket i counts times below 2**i microseconds and not below 2**(i-1)
RATE_SECONDS = 10


class Counters:
    """What one connection, or a sum of them, has done."""

    __slots__ = ("bytes_read", "bytes_written", "errors", "latency", "requests")

    def __init__(self) -> None:
        self.requests = [0] * len(KINDS)
        self.bytes_read = 0
        self.bytes_written = 0
        self.errors = 0
        self.latency = [[0] * BUCKETS for _ in KINDS]

    def took(self, kind: int, count: int, seconds: float) -> None:
        """Note that ``count`` requests of a kind were answered, ``seconds`` after they came."""
        self.requests[kind] += count
        self.latency[kind][min(int(seconds * 1e6).bit_length(), BUCKETS - 1)] += count

    def add(self, other: Counters) -> None:
        """Add another's figures to these."""
        self.bytes_read += other.bytes_read
        self.bytes_written += other.bytes_written
        self.errors += other.errors
        for kind in range(len(KINDS)):
            self.requests[kind] += other.requests[kind]
            mine, theirs = self.latency[kind], other.latency[kind]
            for bucket in range(BUCKETS):
                mine[bucket] += theirs[bucket]

    def as_dict(self) -> dict[str, Any]:
        """For ``status --json``; latency as {kind: {upper bound in microseconds: count}}."""
        return {
            "requests": {name: self.requests[kind] for kind, name in enumerate(KINDS)},
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "errors": self.errors,
            "latency_us": {
                name: {str(1 << b): n for b, n in enumerate(self.latency[kind]) if n}
                for kind, name in enumerate(KINDS)
                if self.requests[kind]
            },
        }


def quantile(histogram: Iterable[tuple[int, int]], share: float) -> int:
    """Upper bound, in microseconds, of the bucket in which ``share`` (0 to 1) of requests lie.

    ``histogram`` holds (upper bound, count) in ascending order; an empty one gives 0.
    """
    pairs = list(histogram)
    wanted = share * sum(count for _, count in pairs)
    seen = 0
    for bound, count in pairs:
        seen += count
        if count and seen >= wanted:
            return bound
    return 0


class Meter:
    """Sums the counters of an export's connections, and knows the rates of the last seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[Counters] = set()
        self._closed = Counters()
        self._samples: deque[tuple[float, int, int, int, int]] = deque(maxlen=RATE_SECONDS + 1)
        self.connections_ever = 0

    def connect(self) -> Counters:
        """Counters for a new connection."""
        counters = Counters()
        with self._lock:
            self._open.add(counters)
            self.connections_ever += 1
        return counters

    def disconnect(self, counters: Counters) -> None:
        """Keep the figures of a connection that has ended."""
        with self._lock:
            self._open.discard(counters)
            self._closed.add(counters)

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._open)

    def total(self) -> Counters:
        """The sum over all connections, open and closed."""
        total = Counters()
        with self._lock:
            total.add(self._closed)
            for counters in self._open:
                total.add(counters)
        return total

    def tick(self, now: float) -> None:
        """Take a sample for the rates; the server calls this about once a second."""
        total = self.total()
        self._samples.append(
            (
                now,
                total.requests[READ],
                total.requests[WRITE],
                total.bytes_read,
                total.bytes_written,
            )
        )

    def rates(self) -> dict[str, float]:
        """Per second, over the last ten seconds: reads, writes, bytes read, bytes written."""
        names = ("reads", "writes", "bytes_read", "bytes_written")
        samples = list(self._samples)
        if len(samples) < 2:
            return dict.fromkeys(names, 0.0)
        first, last = samples[0], samples[-1]
        seconds = max(last[0] - first[0], 1e-9)
        return {n: (last[i + 1] - first[i + 1]) / seconds for i, n in enumerate(names)}
