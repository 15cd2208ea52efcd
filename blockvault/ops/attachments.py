"""Files kept with a snapshot: a machine's configuration, its memory, the state of its devices.

An attachment is stored as a volume is, a tree of blocks under a name; it is part of one snapshot
and has no events of its own.  Small ones are read whole, memory is written into a sparse file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockvault.errors import BadRequest, Conflict, NotFound
from blockvault.ids import ZERO_ID
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import Progress, copying, images, reading, silent, snapshots
from blockvault.ops.images import RawImage
from blockvault.ops.intake import Intake
from blockvault.ops.reading import StateDevice

if TYPE_CHECKING:
    from blockvault.ops.positions import Position
    from blockvault.pins import Pin
    from blockvault.vault import Vault

SMALL = 256 << 20
"""What ``content`` reads at most: more than that does not belong into memory."""

RUNNING_STATE = frozenset({"memory", "device-state", "state.json", "memory.json"})
"""Those that a machine left which ran: they belong to its disks as these were at that moment."""


def keep(
    vault: Vault, files: Mapping[str, bytes | Path], before: Iterable[Volume] = ()
) -> list[Volume]:
    """Store contents under these names; a snapshot recorded later makes them part of history.

    ``before`` are earlier states of some of them: what those hold is known to be stored.
    """
    earlier = {each.name: each for each in before}
    intake = Intake(vault, silent, 0)
    kept = []
    for name, source in sorted(files.items()):
        if isinstance(source, bytes):
            kept.append(intake.volume(name, _Bytes(name, source), None))
            continue
        with images.opened(source, "raw", vault.path, False) as file:
            kept.append(intake.volume(name, file, earlier.get(name)))
            file.check_unchanged()
    intake.finish()
    return kept


def to_rows(kept: Iterable[Volume]) -> list[list[Any]]:
    """Attachments as JSON has them, for the process that records the snapshot."""
    return [[name, size, root.hex()] for name, size, root in kept]


def from_rows(rows: Iterable[Any]) -> list[Volume]:
    """The inverse of ``to_rows``."""
    try:
        return [Volume.checked(name, size, bytes.fromhex(root)) for name, size, root in rows]
    except (ValueError, TypeError) as error:
        raise BadRequest(f"attachments that cannot be read: {error}") from None


def check_stored(vault: Vault, kept: Iterable[Volume]) -> None:
    """``Conflict`` if they were collected since they were kept; not before the end of a guard."""
    with vault.read() as reader:
        roots = {each.root for each in kept} - {ZERO_ID}
        if len(reader.known(list(roots))) < len(roots):
            raise Conflict(
                "the files of this snapshot are gone: whoever asked for it has ended; nothing was "
                "recorded, ask again",
                kind="files-gone",
            )


class _Bytes(RawImage):
    """Bytes in memory, read as an image is."""

    def __init__(self, name: str, data: bytes) -> None:
        self.path = Path(name)
        self.size = len(data)
        self._data = data

    def data_runs(self) -> Iterator[tuple[int, int]]:
        if self.size:
            yield 0, self.size

    def read_into(self, offset: int, into: memoryview) -> None:
        into[:] = self._data[offset : offset + len(into)].ljust(len(into), b"\0")


def find(attachments: Iterable[Volume], name: str) -> Volume | None:
    """The attachment of this name, if there is one."""
    return next((each for each in attachments if each.name == name), None)


def device(vault: Vault, attachment: Volume, pin: Pin | None = None) -> StateDevice:
    """An attachment as a read-only device, which ``pin`` or else the caller keeps."""
    return reading.of_volume(vault, attachment, pin=pin)


def content(vault: Vault, attachments: Iterable[Volume], name: str) -> bytes:
    """A small attachment whole; ``NotFound`` when there is none of this name."""
    found = find(attachments, name)
    if found is None:
        raise NotFound(f"the snapshot has no attachment '{name}'", kind="no-attachment")
    if found.size > SMALL:
        raise BadRequest(f"attachment '{name}' has {found.size:,} bytes, too many to read at once")
    return device(vault, found).read(0, found.size)


def restore(vault: Vault, attachment: Volume, fd: int, progress: Progress = silent) -> None:
    """Write an attachment into an empty file; what is zero stays a hole."""
    source = device(vault, attachment)
    with copying.writing(f"the file of '{attachment.name}' is incomplete"):
        os.ftruncate(fd, attachment.size)
        copying.copy_out(source, fd, progress)


def by_name(snapshot: Snapshot, before: Sequence[Mapping[str, bytes]]) -> dict[str, bytes]:
    """By name the snapshot whose attachment counts for this one: its own, or what those ``before``
    have by the same rule.  The state of a machine that ran belongs to its own snapshot alone.
    """
    found: dict[str, bytes] = {}
    for each in reversed(before):
        found |= each
    own = [each.name for each in snapshot.attachments if each.name not in RUNNING_STATE]
    return found | dict.fromkeys(own, snapshot.id)


def inherited(vault: Vault, position: Position, name: str) -> Snapshot | None:
    """The newest snapshot that a state stands on which has an attachment of this name.

    A snapshot of the disks alone says nothing new about the machine, so what it stands on counts.
    """
    for snapshot in snapshots.log(vault, position):
        if find(snapshot.attachments, name):
            return snapshot
    return None
