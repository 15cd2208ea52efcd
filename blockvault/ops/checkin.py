"""The files of a checkout back into the vault: ``snapshot --from``.

What the manifest says of a file that nobody wrote to since is believed; the others are read, and
what they share with the state that was checked out is not stored again.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from blockvault.errors import BadRequest, Conflict, NotFound
from blockvault.ids import ZERO_ID
from blockvault.model.names import check_volume_name
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import Progress, images, ingest, manifest, silent
from blockvault.ops.checkout import root_known
from blockvault.ops.images import RawImage
from blockvault.ops.intake import Intake
from blockvault.ops.manifest import Entry, Manifest
from blockvault.ops.snapshots import NewBranch

if TYPE_CHECKING:
    from blockvault.vault import Vault


def snapshot_from(
    vault: Vault,
    directory: Path,
    *,
    branch: str | None = None,
    message: str = "",
    author: str | None = None,
    progress: Progress | None = None,
) -> Snapshot:
    """Make what the files of a checkout hold now the branch's next snapshot.

    Without ``branch`` it is the branch that was checked out.  Files that nobody wrote to are not
    read.  Every ``.raw`` file in the directory is a volume, new ones too; a file that the manifest
    names and that is gone is an error, not a deletion.
    """
    held = manifest.load(directory)
    if held is None:
        raise NotFound(f"{directory} is no checkout: it has no {manifest.FILE_NAME}")
    name = _checked_out(held, directory) if branch is None else branch
    files = _files(held, directory)
    with ExitStack() as stack:
        stack.enter_context(vault.guard())
        sources = {
            entry.file: stack.enter_context(
                images.opened(directory / entry.file, "raw", vault.path, False)
            )
            for entry in files
            if not _still(vault, held, directory, entry)
        }
        target = ingest.hold_target(vault, name, stack)
        if branch is None and isinstance(target.branch, NewBranch):
            raise NotFound(
                f"branch '{name}', which {directory} is a checkout of, was deleted or renamed; "
                "nothing was recorded. -b NAME records into another one",
                kind="no-branch",
            )
        volumes = {volume.name: volume for volume in target.volumes}
        attachments: dict[str, Volume] = {}
        total = sum(source.size for source in sources.values())
        intake = Intake(vault, progress or silent, total)
        for entry in files:
            into = attachments if entry.attachment else volumes
            known = Volume(entry.name, entry.size, bytes.fromhex(entry.root))
            source = sources.get(entry.file)
            # The tree of a head that was checked out between two checkpoints is not stored.
            before = known if root_known(vault, known.root) else into.get(entry.name)
            into[entry.name] = intake.volume(entry.name, source, before) if source else known
        intake.finish()
        for source in sources.values():
            source.check_unchanged()
        made = target.record(
            volumes.values(), str(directory), message, author, list(attachments.values())
        )
    entries = [_taken(entry, made, sources.get(entry.file)) for entry in files]
    manifest.save(directory, Manifest(held.vault, made.id.hex(), name, tuple(entries)))
    return made


def _checked_out(held: Manifest, directory: Path) -> str:
    if held.branch is None:
        raise BadRequest(
            f"{directory} is a checkout of {held.revision}, which is no branch, so it is not known "
            "where to record it; -b NAME says that",
            kind="not-a-branch",
        )
    return held.branch


def _files(held: Manifest, directory: Path) -> list[Entry]:
    """The manifest's files, all there, and the raw files that came since."""
    for entry in held.entries:
        if not (directory / entry.file).exists():
            raise NotFound(
                f"{directory / entry.file} is gone; 'blockvault checkout' brings it back",
                kind="no-image",
            )
        if not entry.complete:
            raise Conflict(
                f"{directory / entry.file} is incomplete: its checkout was interrupted; "
                "run 'blockvault checkout' again",
                kind="file-incomplete",
            )
    fresh = sorted(p.name for p in directory.glob("*.raw") if held.entry(p.name) is None)
    return [*held.entries, *(_new_entry(directory / name) for name in fresh)]


def _new_entry(path: Path) -> Entry:
    return Entry(check_volume_name(path.stem), path.name, False, 0, ZERO_ID.hex(), (0, 0, 0))


def _still(vault: Vault, held: Manifest, directory: Path, entry: Entry) -> bool:
    """Whether the file is as it was checked out, and the vault still has that tree."""
    if held.vault != vault.options.vault_id.hex() or not entry.unchanged(directory):
        return False
    return root_known(vault, bytes.fromhex(entry.root))


def _taken(entry: Entry, made: Snapshot, source: RawImage | None) -> Entry:
    """The manifest's entry of a file whose content the snapshot has, as it was when it was read."""
    seen = entry.fingerprint
    if source is not None:
        now = source.fingerprint
        seen = (now.size, now.mtime_ns, now.inode)
    among = made.attachments if entry.attachment else made.volumes
    volume = next(volume for volume in among if volume.name == entry.name)
    return replace(
        entry,
        size=volume.size,
        root=volume.root.hex(),
        fingerprint=seen,
    )
