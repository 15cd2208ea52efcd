"""Snapshots: immutable objects that name a state and its parents, as git's commits do.

    pack([1, parents, volumes, attachments, message, author, time_us, seq])

``parents`` is a list of snapshot ids, ``volumes`` and ``attachments`` are lists of [name, size,
root] in ascending order of their names.  The id of a snapshot is the BLAKE3-256 of these bytes.
Encoding is canonical: ``decode`` refuses bytes that ``encode`` would not have written, so that a
snapshot has one id.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from itertools import pairwise
from reprlib import repr as brief  # of values of any depth
from typing import Any, NamedTuple

from blockvault.encoding import pack, unpack
from blockvault.errors import BadRequest, Damaged, Unsupported
from blockvault.ids import object_id
from blockvault.model.checks import check_id, check_number, check_text
from blockvault.model.names import check_volume_name

VERSION = 1
MAX_SIZE = 1 << 60
"""Bytes of a volume: an exbibyte, so that offsets fit any signed 64-bit interface."""


class Volume(NamedTuple):
    """A named content: ``size`` bytes under the tree ``root``; attachments are the same thing."""

    name: str
    size: int
    root: bytes

    @classmethod
    def checked(cls, name: Any, size: Any, root: Any) -> Volume:
        """Build one from values that may be anything; ``BadRequest`` says what is wrong."""
        check_volume_name(name)
        if type(size) is not int or not 0 <= size <= MAX_SIZE:
            raise BadRequest(f"volume '{name}' cannot have a size of {brief(size)} bytes")
        return cls(name, size, check_id(root))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One immutable version of a machine; ``id`` follows from all the rest.

    ``time_us`` is microseconds since 1970 UTC; ``seq`` the event that its state stands on.
    """

    parents: tuple[bytes, ...]
    volumes: tuple[Volume, ...]
    attachments: tuple[Volume, ...] = ()
    message: str = ""
    author: str = ""
    time_us: int = 0
    seq: int = 0
    id: bytes = field(init=False)

    def __post_init__(self) -> None:
        if len(set(self.parents)) != len(self.parents):
            raise BadRequest("a snapshot names each parent once")
        for parent in self.parents:
            check_id(parent)
        check_volumes(self.volumes)
        check_volumes(self.attachments)
        check_text(self.message)
        check_text(self.author)
        check_number(self.time_us)
        check_number(self.seq)
        object.__setattr__(self, "id", object_id(self.encode()))

    def volume(self, name: str) -> Volume | None:
        """The volume of this name, if there is one."""
        return next((volume for volume in self.volumes if volume.name == name), None)

    def grafted(self, parents: tuple[bytes, ...]) -> Snapshot:
        """The same snapshot, id and all, that continues others; it is never stored so."""
        if parents == self.parents:
            return self
        other = copy(self)
        object.__setattr__(other, "parents", parents)
        return other

    def encode(self) -> bytes:
        """The bytes that are stored and hashed."""
        body = (self.parents, self.volumes, self.attachments, self.message, self.author)
        return pack((VERSION, *body, self.time_us, self.seq))

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Snapshot:
        """Read what ``encode`` wrote; ``Damaged``, or ``Unsupported`` for a later version."""
        value = unpack(data, "snapshot")
        if not isinstance(value, tuple) or not value or type(value[0]) is not int:
            raise Damaged("object is not a snapshot", kind="bad-encoding")
        if value[0] != VERSION:
            raise Unsupported(f"snapshot of version {value[0]}; this program knows {VERSION}")
        try:
            _, parents, volumes, attachments, message, author, time_us, seq = value
            snapshot = cls(
                parents=parents,
                volumes=volumes_from(volumes),
                attachments=volumes_from(attachments),
                message=message,
                author=author,
                time_us=time_us,
                seq=seq,
            )
        except (TypeError, ValueError, BadRequest) as error:
            raise Damaged(f"snapshot cannot be decoded: {error}", kind="bad-encoding") from None
        if snapshot.encode() != data:
            raise Damaged("snapshot is not in canonical encoding", kind="bad-encoding")
        return snapshot


def volumes_from(value: Iterable[Any]) -> tuple[Volume, ...]:
    """Decoded [name, size, root] lists as volumes; ``TypeError`` if they have another shape."""
    return tuple(Volume(*item) for item in value)


def check_volumes(volumes: Any) -> tuple[Volume, ...]:
    """Return ``volumes`` if they are sound, in ascending order of name, each name once."""
    if not isinstance(volumes, tuple):
        raise BadRequest("volumes are a tuple")
    for volume in volumes:
        if not isinstance(volume, Volume):
            raise BadRequest(f"{brief(volume)} is not a volume")
        Volume.checked(*volume)
    names = [volume.name for volume in volumes]
    if any(a >= b for a, b in pairwise(names)):
        raise BadRequest(f"volumes are not in ascending order of name: {', '.join(names)}")
    return volumes
