"""The manifest of a checkout: what each file in a directory was when it was written.

``.blockvault-checkout.json`` names the vault, the revision, and for each file the tree root of its
content together with the file's fingerprint.  While a file still has that fingerprint its content
is known without reading it; a file that somebody wrote to is read again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from blockvault import files
from blockvault.errors import BadRequest, Busy, IOFailed
from blockvault.store import filesystem

FILE_NAME = ".blockvault-checkout.json"
VERSION = 1
WRITING = (0, 0, 0)
"""The fingerprint of a file that is being written: its content is unknown."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: the volume or attachment in it, its root as hex, and its fingerprint."""

    name: str
    file: str
    attachment: bool
    size: int
    root: str
    fingerprint: tuple[int, int, int]

    @property
    def complete(self) -> bool:
        """False while the file is being written, and after a checkout that was interrupted."""
        return self.fingerprint != WRITING

    def unchanged(self, directory: Path) -> bool:
        """True while the file is the one that was written and nobody wrote to it since."""
        return self.complete and self.fingerprint == fingerprint(directory / self.file)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a directory holds."""

    vault: str
    revision: str
    branch: str | None
    snapshot: str | None
    """The id of the snapshot that every entry is of, as hex; None where there is no such one."""
    entries: tuple[Entry, ...]

    def entry(self, file: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.file == file), None)

    def without(self, file: str) -> Manifest:
        return replace(self, entries=tuple(e for e in self.entries if e.file != file))

    def having(self, entry: Entry) -> Manifest:
        others = [e for e in self.entries if e.file != entry.file]
        return replace(self, entries=tuple(sorted([*others, entry], key=lambda e: e.file)))


def fingerprint(path: Path) -> tuple[int, int, int]:
    """Size, time of the last write and inode, of a link its own; ``WRITING`` for no file."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return WRITING
    return (info.st_size, info.st_mtime_ns, info.st_ino)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold a checkout's directory: two who write its files would mix them and call them whole."""
    with files.locked(directory, 0) as ours:
        if not ours:
            raise Busy(
                f"another process writes to the files of {directory}; nothing was changed. Try "
                "again when it is done",
                kind="checkout-busy",
            )
        yield


def load(directory: Path) -> Manifest | None:
    """The directory's manifest, None if it has none; ``BadRequest`` if it cannot be read."""
    path = directory / FILE_NAME
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    try:
        return _from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None


def save(directory: Path, manifest: Manifest) -> None:
    """Write the manifest durably, all or nothing, with the names that the directory has by now."""
    path = directory / FILE_NAME
    text = json.dumps({"version": VERSION, **asdict(manifest)}, indent=1) + "\n"
    try:
        files.replace(path, text.encode(), mode=0o666, durable=True, alone=True)
        filesystem.sync_names(directory)
    except OSError as error:
        raise IOFailed(f"{path} cannot be written: {error.strerror}") from None


def _from_json(value: dict[str, Any]) -> Manifest:
    if value["version"] != VERSION:
        raise ValueError(f"version {value['version']}, this program knows {VERSION}")
    entries = tuple(
        Entry(
            str(item["name"]),
            Path(item["file"]).name,
            bool(item["attachment"]),
            int(item["size"]),
            bytes.fromhex(item["root"]).hex(),
            tuple(item["fingerprint"]),
        )
        for item in value["entries"]
    )
    snapshot = value.get("snapshot") and bytes.fromhex(value["snapshot"]).hex()
    return Manifest(value["vault"], value["revision"], value["branch"], snapshot, entries)


def _unreadable(path: Path, error: Exception) -> BadRequest:
    return BadRequest(f"{path} is not a manifest that can be read: {error}", kind="bad-manifest")
