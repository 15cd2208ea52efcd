"""bup: content-defined chunks of about 8 KiB in git packs, zlib level 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.bench.commands import Command, command
from tools.bench.peers.base import Archive, NotOffered


class Bup(Archive):
    """``bup split`` is its command for single big files; one ref for each state."""

    name = "bup"
    title = "bup, split, zlib 1"
    programs = ("bup", "git")
    skips_holes = False

    def start(self) -> list[Command]:
        return [self._bup("--version")]

    def create(self) -> list[Command]:
        self.folder.mkdir(parents=True)
        return [self._bup("init")]

    def save(self, image: Path, state: str, machine: str) -> list[Command]:
        return [self._bup("split", "--name", state, str(image))]

    def restore(self, state: str, target: Path) -> list[Command]:
        return [self._bup("join", state, stdout=target)]

    def verify(self) -> list[Command]:
        return [self._bup("fsck")]

    def forget(self, gone: Sequence[str], kept: Sequence[str]) -> list[Command]:
        raise NotOffered("its rm and gc want --unsafe")

    def _bup(self, *words: str, stdout: Path | None = None) -> Command:
        return command("bup", *words, env={"BUP_DIR": str(self.folder)}, stdout=stdout)
