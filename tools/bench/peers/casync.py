"""casync: content-defined chunks of about 64 KiB, one zstd file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.bench.commands import Command, command
from tools.bench.peers.base import Archive


class Casync(Archive):
    """A blob index for each state, one chunk store for all."""

    name = "casync"
    title = "casync, blob index, zstd"
    programs = ("casync",)
    skips_holes = False

    def start(self) -> list[Command]:
        return [command("casync", "--version")]

    def create(self) -> list[Command]:
        self.folder.mkdir(parents=True)
        return []

    def save(self, image: Path, state: str, machine: str) -> list[Command]:
        options = (self._store, "--compression=zstd", "--what=blob-index")
        return [command("casync", "make", *options, self._index(state), image)]

    def restore(self, state: str, target: Path) -> list[Command]:
        return [command("casync", "extract", self._store, self._index(state), target)]

    def forget(self, gone: Sequence[str], kept: Sequence[str]) -> list[Command]:
        return [
            command("rm", *map(self._index, gone)),
            command("casync", "gc", self._store, *map(self._index, kept)),
        ]

    @property
    def _store(self) -> str:
        return f"--store={self.folder / 'chunks.castr'}"

    def _index(self, state: str) -> Path:
        return self.folder / f"{state}.caibx"
