"""BorgBackup, without encryption: zstd level 3, with its fixed and its default chunker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.bench.commands import Command, command
from tools.bench.peers.base import FILES_ONLY, Archive


class BorgFixed(Archive):
    """Fixed 64 KiB chunks: what borg advises for disk images.  ``--sparse`` skips holes."""

    name = "borg-fixed"
    title = "borg, fixed 64 KiB, zstd 3"
    programs = ("borg",)
    no_diff = FILES_ONLY
    skips_holes = False  # it does not read them, but it handles each chunk of them
    chunker: tuple[str, ...] = ("--chunker-params", "fixed,65536", "--sparse")

    def start(self) -> list[Command]:
        return [self._borg("--version")]

    def create(self) -> list[Command]:
        self.folder.mkdir(parents=True)
        return [self._borg("init", "--encryption", "none", self._repository)]

    def save(self, image: Path, state: str, machine: str) -> list[Command]:
        archive = f"{self._repository}::{state}"
        options = ("--compression", "zstd,3", *self.chunker)
        return [self._borg("create", *options, archive, image.name, cwd=image.parent)]

    def restore(self, state: str, target: Path) -> list[Command]:
        archive = f"{self._repository}::{state}"
        return [self._borg("extract", "--sparse", archive, cwd=target.parent)]

    def restored(self, target: Path) -> Path:
        return next(target.parent.iterdir())

    def verify(self) -> list[Command]:
        return [self._borg("check", "--verify-data", self._repository)]

    def forget(self, gone: Sequence[str], kept: Sequence[str]) -> list[Command]:
        return [
            self._borg("delete", f"{self._repository}::{gone[0]}", *gone[1:]),
            self._borg("compact", self._repository),
        ]

    @property
    def _repository(self) -> str:
        return str(self.folder / "repository")

    def _borg(self, *words: str, cwd: Path | None = None) -> Command:
        env = {
            "BORG_BASE_DIR": str(self.folder.with_name(f"{self.folder.name}-home")),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        return command("borg", *words, env=env, cwd=cwd)


class BorgDefault(BorgFixed):
    """Content-defined chunks of about 2 MiB: borg as it comes."""

    name = "borg-default"
    title = "borg, default chunker, zstd 3"
    chunker = ()
