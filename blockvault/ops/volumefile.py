"""A device as a file, for libraries that read files."""

from __future__ import annotations

import io
from typing import Any

from blockvault.device import Device


class VolumeFile(io.RawIOBase):
    """A device as a seekable file that can be read."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._device.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._device.size - self._at))
        if length:  # a file may be read from beyond its end, a device may not
            view[:length] = self._device.read(self._at, length)
            self._at += length
        return length
