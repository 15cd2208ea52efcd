"""Volumes in memory, for the tests of the edge: no vault, no disk, every fault on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from blockvault.device import Extent
from blockvault.errors import Busy, NotFound
from blockvault.nbd.contexts import ChangedRun, Changes


class MemoryDevice:
    """A bytearray as a device.  ``durable`` is what it held at the last flush."""

    def __init__(self, size: int, *, block_size: int = 4096, read_only: bool = False) -> None:
        self.size = size
        self.block_size = block_size
        self.read_only = read_only
        self.data = bytearray(size)
        self.durable = bytearray()
        self.flushes = 0
        self.quick_flush = False
        self.calls: list[tuple[str, int, int]] = []
        self.fault: Callable[[str, int, int], None] = lambda what, offset, length: None

    def _called(self, what: str, offset: int, length: int) -> None:
        self.calls.append((what, offset, length))
        assert 0 <= offset <= offset + length <= self.size
        self.fault(what, offset, length)

    def read(self, offset: int, length: int) -> bytes:
        self._called("read", offset, length)
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._called("write", offset, len(data))
        self.data[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self._called("zero", offset, length)
        self.data[offset : offset + length] = bytes(length)

    def trim(self, offset: int, length: int) -> None:
        self._called("trim", offset, length)
        self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self._called("flush", 0, 0)
        self.durable[:] = self.data  # in place: fresh memory takes far longer
        self.flushes += 1

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._called("extents", offset, length)
        position, stop = offset, offset + length
        while position < stop:
            end = min((position // self.block_size + 1) * self.block_size, stop)
            # any() would take a hundred times as long.
            zero = self.data[position:end] == bytes(end - position)
            yield Extent(position, end - position, zero)
            position = end


class BatchMemoryDevice(MemoryDevice):
    """The same with the optional batch methods."""

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self._called("read_many", 0, 0)
        return [self.read(offset, length) for offset, length in ranges]

    def write_many(self, writes: Sequence[tuple[int, memoryview]]) -> None:
        self._called("write_many", 0, 0)
        for offset, data in writes:
            self.write(offset, data)


class MemoryVolume:
    """A device that is there from the start; counts how often it is opened and closed."""

    def __init__(self, name: str, device: MemoryDevice, description: str = "") -> None:
        self.name = name
        self.device = device
        self.description = description
        self.size = device.size
        self.block_size = device.block_size
        self.read_only = device.read_only
        self.settled = True
        self.opened = 0
        self.joined = 0
        self.closed = 0
        self.differing: dict[str, list[ChangedRun]] = {}
        self.busy = False

    def open(self) -> MemoryDevice:
        if self.busy:
            raise Busy("process 4711 writes branch /secret/path")
        self.opened += 1
        return self.device

    def join(self) -> None:
        self.joined += 1

    def close(self, device: object) -> None:
        assert device is self.device
        self.closed += 1

    def changes(self, revision: str) -> Changes | None:
        runs = self.differing.get(revision)
        if runs is None:
            return None
        return lambda device, offset, length: iter(runs)


class MemoryCatalogue:
    """Volumes by name; the empty name is the first one's."""

    def __init__(self, *volumes: MemoryVolume) -> None:
        self.volumes = {volume.name: volume for volume in volumes}
        self.lock = threading.Lock()

    def listing(self) -> Iterable[tuple[str, str]]:
        return [(volume.name, volume.description) for volume in self.volumes.values()]

    def find(self, name: str) -> MemoryVolume:
        if not name:
            return next(iter(self.volumes.values()))
        try:
            return self.volumes[name]
        except KeyError:
            raise NotFound(f"no volume {name} in /secret/path") from None
