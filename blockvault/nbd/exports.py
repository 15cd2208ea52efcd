"""Names to devices: a volume is opened when the first client has chosen it, shared by all who
choose it, and released with the last.

The edge knows volumes only through two small protocols, ``Catalogue`` and ``Volume``; the vault's
are in ``volumes``, tests bring their own.  Two names with the same canonical name share one device,
so a FLUSH on one connection covers the writes of all of them.

``Exports`` itself holds no lock while a volume is opened or closed: each name has a slot with its
own lock, so a slow open or a last flush delays only clients of that very name.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from blockvault.device import Device
from blockvault.errors import VaultError
from blockvault.nbd.contexts import Changes
from blockvault.nbd.replies import Content
from blockvault.nbd.stats import Meter

log = logging.getLogger(__name__)

MAX_IDLE = 256  # names whose figures are kept after their last client has left


@runtime_checkable
class BatchReads(Protocol):
    """A device that takes many reads at once, which saves a small one most of its price.

    Ranges are not empty and inside the device.  On an exception the caller repeats the batch one
    by one.
    """

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> Sequence[Content]: ...


@runtime_checkable
class BatchWrites(Protocol):
    """The same for writes: they are applied in order; views are valid only during the call."""

    def write_many(self, writes: Sequence[tuple[int, memoryview]]) -> None: ...


ReadMany = Callable[[Sequence[tuple[int, int]]], Sequence[Content]]
WriteMany = Callable[[Sequence[tuple[int, memoryview]]], None]


def read_many_of(device: Device) -> ReadMany:
    """``read_many`` of a device, or what does the same by single reads."""
    if isinstance(device, BatchReads):
        return device.read_many
    return lambda ranges: [device.read(offset, length) for offset, length in ranges]


def write_many_of(device: Device) -> WriteMany:
    """``write_many`` of a device, or what does the same by single writes."""
    if isinstance(device, BatchWrites):
        return device.write_many

    def write_many(writes: Sequence[tuple[int, memoryview]]) -> None:
        for offset, data in writes:
            device.write(offset, data)

    return write_many


class Volume(Protocol):
    """What can be said of a volume before it is opened, and how to open and close it."""

    @property
    def name(self) -> str:
        """Canonical: the same name is the same content and the same device."""

    @property
    def description(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def read_only(self) -> bool: ...

    @property
    def settled(self) -> bool:
        """Whether the name that was asked for means this very device for whoever asks next: then
        a client may use several connections."""

    def open(self) -> Device:
        """Called once, for the first client; may raise any ``VaultError``."""

    def join(self) -> None:
        """Called for each client after the first, while the device is open; may raise as well."""

    def close(self, device: Device) -> None:
        """Called once, after the last client has left and ``device`` was flushed."""

    def changes(self, revision: str) -> Changes | None:
        """The ranges that differ from ``revision``, or None if there is no such revision."""


class Catalogue(Protocol):
    """All volumes that a server offers; the empty name may stand for one of them."""

    def listing(self) -> Iterable[tuple[str, str]]:
        """Names and descriptions worth listing; more names than these may be found."""

    def find(self, name: str) -> Volume:
        """The volume of that name; ``NotFound`` if there is none."""


class GroupFlush:
    """Many who flush share one flush of the device: one runs, all who came meanwhile get the next.

    Who calls ``flush`` is covered by a device flush that *began* after the call.  Joining the one
    that is running would be wrong: it may have passed the caller's writes already.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._running = False
        self._next = _Round()
        self.rounds = 0

    def flush(self) -> None:
        """Return when all that was written before is durable; raise what the device raises."""
        with self._lock:
            mine = self._next
            while self._running and not mine.done:
                self._changed.wait()
            leads = not mine.done
            if leads:
                self._running = True
                self._next = _Round()
        if leads:
            self._run(mine)
        if mine.error is not None:
            raise mine.error

    def _run(self, mine: _Round) -> None:
        try:
            self._device.flush()
        except Exception as error:
            mine.error = error
        finally:
            with self._lock:
                self._running = False
                mine.done = True
                self.rounds += 1
                self._changed.notify_all()


class _Round:
    """One flush of the device, and how it ended."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = False
        self.error: Exception | None = None


class Export:
    """An open volume as its connections see it: the device, its shared flush, its figures."""

    def __init__(self, volume: Volume, device: Device, meter: Meter) -> None:
        self.volume = volume
        self.name = volume.name
        self.description = volume.description
        self.device = device
        self.meter = meter
        self.commit = GroupFlush(device)
        self.size = device.size
        self.block_size = device.block_size
        self.read_only = volume.read_only or device.read_only


class _Slot:
    """The place of one canonical name; ``lock`` is held while its volume is opened or closed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.export: Export | None = None
        self.meter = Meter()


class Exports:
    """The volumes that a server offers, and those that are open."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}

    def listing(self) -> list[tuple[str, str]]:
        """Names and descriptions for a client that asks what there is."""
        return list(self._catalogue.listing())

    def find(self, name: str) -> Volume:
        """The volume behind a name; nothing is opened."""
        return self._catalogue.find(name)

    def attach(self, volume: Volume) -> Export:
        """Open a volume, or join those who have it open; each ``attach`` needs one ``release``."""
        slot = self._enter(volume.name)
        try:
            with slot.lock:
                if slot.export is None:
                    slot.export = Export(volume, volume.open(), slot.meter)
                    log.info("opened %s", volume.name)
                else:
                    volume.join()
                return slot.export
        except BaseException:
            self._let_go(volume.name)  # the last one too, if all others have left meanwhile
            raise

    def release(self, export: Export) -> None:
        """Let go of an export; the last one flushes it and closes the volume."""
        self._let_go(export.name)

    def _let_go(self, name: str) -> None:
        slot = self._slots[name]
        with slot.lock:
            if slot.users == 1 and slot.export is not None:
                self._close(slot.export)
                slot.export = None
            self._leave(name)

    def _close(self, export: Export) -> None:
        try:
            if not export.read_only:
                export.commit.flush()
        # Nobody is left to be told.  No FLUSH was answered for these writes, so nothing promised is
        # lost; the log is the only place where this can be seen.
        except VaultError as error:
            log.error("the last flush of %s failed: %s", export.name, error)
        except Exception:
            log.exception("the last flush of %s failed", export.name)
        try:
            export.volume.close(export.device)
        except Exception:
            log.exception("closing %s failed", export.name)
        log.info("closed %s", export.name)

    def _enter(self, name: str) -> _Slot:
        with self._lock:
            slot = self._slots.setdefault(name, _Slot())
            slot.users += 1
            return slot

    def _leave(self, name: str) -> None:
        with self._lock:
            self._slots[name].users -= 1
            if len(self._slots) > MAX_IDLE:
                # Any event of a branch is an export, so names are as many as a client likes.
                self._slots = {n: slot for n, slot in self._slots.items() if slot.users}

    def open_exports(self) -> list[Export]:
        """Those that are open now."""
        with self._lock:
            return [slot.export for slot in self._slots.values() if slot.export is not None]

    def meters(self) -> dict[str, Meter]:
        """Figures of every export that was ever opened, by canonical name."""
        with self._lock:
            return {name: slot.meter for name, slot in self._slots.items()}
