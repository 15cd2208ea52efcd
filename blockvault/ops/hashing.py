"""What the leaves of an image hash to; and a program that finds it out for another process.

    Hasher (hasher.py) ── request: where a chunk lies in the memory that both share ──> main()
                      <── answer: what ``hashed`` says of the chunk ───────────────────────┘

The program is this file, run by its path, and imports nothing of the package: it is to be there
soon.  It opens nothing, holds no lock, and ends when its socket does.  The memory it can only read.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from blake3 import blake3

ZEROS, SAME, OTHER = b"z", b"s", b"o"
"""How a leaf is: without data, as it was before, or else."""
READY = b"ready"
LONGEST = 1 << 20
"""Bytes of a message, at most."""
_NUMBERS = struct.Struct("!4Q")
_ID = 32
_HEAD = 64
"""Bytes that are looked at first: few leaves that begin with so many zeros have anything else."""


class Other(NamedTuple):
    """A leaf that is not as before: one hash over all of its bytes, and the ids of its blocks."""

    digest: bytes
    ids: bytes


def hashed(chunk: memoryview, leaf: int, block: int, before: bytes) -> bytes:
    """What each leaf of ``leaf`` bytes is, one after the other, to be read by ``leaves``.

    ``before`` are the hashes over all of each leaf as they were before, or nothing at all.
    """
    zeros, zero_id = _zeros(leaf, block)
    answer = []
    for number, at in enumerate(range(0, len(chunk), leaf)):
        run = chunk[at : at + leaf]
        if run[:_HEAD] == zeros[:_HEAD] and run.tobytes() == zeros:
            answer.append(ZEROS)
            continue
        digest = blake3(run).digest()
        if digest == before[number * _ID : (number + 1) * _ID]:
            answer.append(SAME)
            continue
        ids = [blake3(run[n : n + block]).digest() for n in range(0, leaf, block)]
        if zero_id in ids:
            ids = [bytes(_ID) if oid == zero_id else oid for oid in ids]
        answer += (OTHER, digest, *ids)
    return b"".join(answer)


@cache
def _zeros(leaf: int, block: int) -> tuple[bytes, bytes]:
    """A leaf without data, and what a block of it hashes to."""
    return bytes(leaf), blake3(bytes(block)).digest()


def leaves(answer: bytes, blocks: int) -> Iterator[bytes | Other]:
    """Take an answer apart: ``ZEROS``, ``SAME`` or an ``Other`` for each leaf of so many blocks."""
    at = 0
    while at < len(answer):
        kind = answer[at : at + 1]
        at += 1
        if kind != OTHER:
            yield kind
            continue
        ids = at + _ID
        yield Other(answer[at:ids], answer[ids : ids + blocks * _ID])
        at = ids + blocks * _ID


class Request(NamedTuple):
    """A chunk to hash: where it lies in the shared memory, and the arguments of ``hashed``."""

    start: int
    stop: int
    leaf: int
    block: int
    before: bytes

    def packed(self) -> bytes:
        return _NUMBERS.pack(self.start, self.stop, self.leaf, self.block) + self.before

    @classmethod
    def unpacked(cls, message: bytes) -> Request:
        start, stop, leaf, block = _NUMBERS.unpack_from(message)
        return cls(start, stop, leaf, block, message[_NUMBERS.size :])

    def answered(self, memory: memoryview) -> bytes:
        return hashed(memory[self.start : self.stop], self.leaf, self.block, self.before)


def main(socket: int, memory: int) -> None:
    """Answer requests until the other side closes the socket, which keeps messages apart."""
    with mmap.mmap(memory, 0, prot=mmap.PROT_READ) as shared, memoryview(shared) as view:
        os.write(socket, READY)
        while message := os.read(socket, LONGEST):
            os.write(socket, Request.unpacked(message).answered(view))


if __name__ == "__main__":
    main(0, 1)
