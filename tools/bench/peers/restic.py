"""restic: content-defined chunks of about 1 MiB, always encrypted, zstd by default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.bench.commands import Command, command
from tools.bench.peers.base import FILES_ONLY, Archive, first_version, words_of


class Restic(Archive):
    """Repository version 2 (the one with compression), ``--compression auto``."""

    name = "restic"
    title = "restic, zstd (auto)"
    programs = ("restic",)
    no_diff = FILES_ONLY
    skips_holes = False

    @classmethod
    def version(cls) -> str:
        return first_version("restic", "version")

    def start(self) -> list[Command]:
        return [self._restic("version")]

    def create(self) -> list[Command]:
        self.folder.mkdir(parents=True)
        return [self._restic("init", "--repository-version", "2")]

    def save(self, image: Path, state: str, machine: str) -> list[Command]:
        options = ("--compression", "auto", "--tag", state)
        return [self._restic("backup", *options, image.name, cwd=image.parent)]

    def restore(self, state: str, target: Path) -> list[Command]:
        """With holes where restic can, from 0.15 on: else it writes an image's zeros."""
        sparse = ("--sparse",) if "--sparse" in words_of("restic", "restore", "--help") else ()
        options = ("--tag", state, "--target", str(target.parent), *sparse)
        return [self._restic("restore", "latest", *options)]

    def restored(self, target: Path) -> Path:
        return next(target.parent.iterdir())

    def verify(self) -> list[Command]:
        return [self._restic("check", "--read-data")]

    def forget(self, gone: Sequence[str], kept: Sequence[str]) -> list[Command]:
        keep = [word for state in kept for word in ("--keep-tag", state)]
        return [self._restic("forget", "--prune", "--group-by", "", *keep)]

    def _restic(self, *words: str, cwd: Path | None = None) -> Command:
        env = {
            "RESTIC_REPOSITORY": str(self.folder / "repository"),
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(self.folder.with_name(f"{self.folder.name}-cache")),
        }
        return command("restic", *words, env=env, cwd=cwd)
