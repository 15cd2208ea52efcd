"""The object index sorted out by frame: what points at each, a part of the vault at a time."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from blockvault.errors import Damaged
from blockvault.ids import ID_SIZE
from blockvault.store import frames, tables
from blockvault.store.caches import DecodedFrame
from blockvault.store.index import ENTRY_SIZE
from blockvault.store.locating import grouped

if TYPE_CHECKING:
    from blockvault.vault import Vault

_AT_A_TIME = 1 << 20
"""About 80 bytes of memory each."""

_NUMBER, _PLACE = 5, ENTRY_SIZE - ID_SIZE
_ROW = struct.Struct(f"{ID_SIZE}s{_NUMBER}s{_PLACE - _NUMBER}s")
_END = b"\xff" * _PLACE
"""Greater than every frame's number."""


class Part(NamedTuple):
    """Frames with ``start`` <= number < ``stop``, and by frame the entries that point there.

    An entry is place ‖ id.  The last part has also those that point at greater numbers.
    """

    start: int
    stop: int
    entries: dict[bytes, list[bytes]]

    def take(self, number: int) -> list[bytes]:
        """Take out the entries of one frame; what is left in the end points at no frame."""
        return self.entries.pop(number.to_bytes(_NUMBER), [])


def parts(vault: Vault, first: int = 0) -> Iterator[Part]:
    """The frames that there are now, from number ``first`` on, in parts that fit in memory."""
    with vault.read() as reader:
        stop, size = reader.newest_frame() + 1, reader.index_size()
    step = max(1, (stop - first) * _AT_A_TIME // max(size, 1))
    for start in range(first, max(stop, first + 1), step):
        end = start + step
        upto = end.to_bytes(_NUMBER) if end < stop else _END
        yield Part(start, min(end, stop), _entries(vault, start.to_bytes(_NUMBER), upto))


def _entries(vault: Vault, low: bytes, high: bytes) -> dict[bytes, list[bytes]]:
    found: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for first in range(tables.INDEX_PARTS):
        with vault.read() as reader:
            rows = reader.index_entries(first)
        for oid, number, slot in _ROW.iter_unpack(rows):
            if low <= number < high:
                found[number].append(number + slot + oid)
    return found


def hidden(vault: Vault) -> int:
    """How many entries the index holds and does not find: a damaged key above leads elsewhere.

    A walk from leaf to leaf does not meet the keys by which an object is looked up.
    """
    count = 0
    for first in range(tables.INDEX_PARTS):
        with vault.read() as reader:
            count += reader.hidden(first)
    return count


def frame_of(entry: bytes) -> int:
    return int.from_bytes(entry[:_NUMBER])


def slot_of(entry: bytes) -> int:
    return entry[_NUMBER] << 8 | entry[_NUMBER + 1]


def id_of(entry: bytes) -> bytes:
    return entry[_PLACE:]


def held(vault: Vault, placed: Sequence[tuple[int, bytes]]) -> set[bytes]:
    """Those of these objects, given by place and id, that are where they are said to be."""
    found = set()
    for number, members in grouped(placed).items():
        with vault.read() as reader:
            data = reader.frame(number)
        with suppress(Damaged):
            frame = DecodedFrame(frames.decode(data or b""))
            found |= {oid for slot, oid in members if frame.proved(slot, oid) is not None}
    return found


def stands(vault: Vault, entry: bytes) -> bool:
    """Whether the index still says so."""
    with vault.read() as reader:
        return reader.locate([entry[_PLACE:]]) == [int.from_bytes(entry[:_PLACE])]
