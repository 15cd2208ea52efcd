"""Which frames are alike, so that they can be packed together.

New versions of files, and the same files inside of archives, are no equal blocks: a byte in front
has moved everything.  But a compressor finds them if it sees both at once.  So from each frame
some pieces are taken at places that its content chooses: where three bytes in a row belong to three
sets, once in about four kilobytes.  Frames that share many pieces are alike.

Putting a frame beside another one takes it away from its neighbours, and reading these in a row
then decodes more.  So it is only done where it saves much.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WORTH_BYTES = 24 << 10
"""What moving a frame must save: the stored bytes that it shares with another one."""

_WORTH_SHARE = 0.1
_FEWEST = 4
_PIECE = 28


def _sets(count: int) -> Iterable[bytes]:
    """Sets of bytes, without the most common one: zeros choose no place."""
    rng = random.Random(7)  # any sets do
    for _ in range(count):
        chosen = (re.escape(bytes([byte])) for byte in rng.sample(range(1, 256), 24))
        yield b"[" + b"".join(chosen) + b"]"


_PLACE = re.compile(b"".join(_sets(3)) + b".{%d}" % _PIECE, re.DOTALL)


class Piece(NamedTuple):
    """A frame: its number, its bytes as stored, the pieces of its content as hashes."""

    number: int
    length: int
    pieces: frozenset[int]


def pieces(content: bytes | memoryview) -> frozenset[int]:
    """What is compared of a frame's content; the hashes differ from process to process."""
    return frozenset(map(hash, _PLACE.findall(content)))


def ordered(frames: Sequence[Piece]) -> list[int]:
    """The numbers of the frames, each behind the earlier one that it is most like, if any is."""
    newest: dict[int, int] = {}
    first: list[int] = []
    groups: dict[int, list[int]] = {}
    for at, frame in enumerate(frames):
        like = _most_like(frame, newest)
        # Neighbours stay together anyway.
        first.append(at if like is None or at - like == 1 else first[like])
        groups.setdefault(first[at], []).append(frame.number)
        newest.update(dict.fromkeys(frame.pieces, at))
    return [number for group in groups.values() for number in group]


def _most_like(frame: Piece, newest: dict[int, int]) -> int | None:
    """Which of the frames before shares most, if that is worth it."""
    if len(frame.pieces) < _FEWEST:
        return None
    shared = Counter(newest[piece] for piece in frame.pieces if piece in newest)
    if not shared:
        return None
    like, count = shared.most_common(1)[0]
    share = count / len(frame.pieces)
    return like if share >= _WORTH_SHARE and share * frame.length >= WORTH_BYTES else None
