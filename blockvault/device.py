"""A block device as its users see it: the interface between the vault and every edge.

Offsets and lengths are bytes.  A device accepts any alignment; it is fastest on multiples of
``block_size``.  Reads beyond ``size`` are the caller's mistake (``BadRequest``).  What ``write``,
``zero`` and ``trim`` took is durable once ``flush`` has returned, and may be lost before that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Extent(NamedTuple):
    """A run of bytes that is alike; ``zero`` runs read as zeros and take no space."""

    offset: int
    length: int
    zero: bool


class Device(Protocol):
    """Random access to ``size`` bytes.  All methods may be called from several threads."""

    size: int
    block_size: int
    read_only: bool

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes | memoryview) -> None: ...
    def zero(self, offset: int, length: int) -> None: ...
    def trim(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...
    def extents(self, offset: int, length: int) -> Iterator[Extent]: ...
