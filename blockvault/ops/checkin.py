"""The files of a checkout back into the vault: ``snapshot --from``.

What the manifest says of a file that nobody wrote to since is believed, and the branch keeps what
it has of it, be it newer; the others are read, and what they share with the state that was checked
out is not stored again.  A file and its volume that were both changed are a conflict.

Attachments may be the memory of the machine whose disks these are, and what goes with that: they
belong to the disks as they were at that moment.  Beside other disks they stay only if they were
changed as well.  All other attachments stay, and stay together: a machine's configuration names its
boot files, and a start takes both from one snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blockvault.errors import BadRequest, Conflict, NotFound
from blockvault.ids import ZERO_ID
from blockvault.model.names import check_volume_name
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.model.tree import Scratch
from blockvault.ops import (
    Progress,
    attachments,
    images,
    ingest,
    manifest,
    positions,
    refs,
    silent,
    snapshots,
)
from blockvault.ops.checkout import root_known
from blockvault.ops.images import RawImage
from blockvault.ops.ingest import Target
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
    force: bool = False,
    progress: Progress | None = None,
) -> Snapshot:
    """Make the files of a checkout that were changed part of the branch's next snapshot.

    Without ``branch`` it is the branch that was checked out; one that is new gets all the files.
    Files that nobody wrote to are not read.  Every ``.raw`` file in the directory is a volume, new
    ones too; a file that the manifest names and that is gone is an error, not a deletion.
    ``Conflict`` where the branch was changed in the same place, unless ``force`` prefers the file.
    """
    snapshots.check_words(message, author)
    _held(vault, directory)
    with ExitStack() as stack:
        stack.enter_context(manifest.alone(directory))
        held = _held(vault, directory)
        name = _checked_out(held, directory) if branch is None else branch
        files = _files(held, directory)
        stack.enter_context(vault.guard())
        target = ingest.hold_target(vault, name, stack)
        if branch is None:
            _refuse_new(target, name, directory)
        state = _State(vault, name, target, held)
        sources = _opened(vault, directory, (e for e in files if state.reads(directory, e)), stack)
        taken = [
            entry for entry in files if state.takes(entry, sources.get(entry.file), force=force)
        ]
        total = sum(sources[entry.file].size for entry in taken if entry.file in sources)
        intake = Intake(vault, progress or silent, total)
        for entry in taken:
            state.take(entry, sources.get(entry.file), intake)
        intake.finish()
        for source in sources.values():
            source.check_unchanged()
        kept = state.kept(taken)
        made = target.record(state.volumes.values(), str(directory), message, author, kept)
        entries = [
            _seen(state.entry(entry) if entry in taken else entry, sources.get(entry.file))
            for entry in files
        ]
        oid = made.id.hex()
        snapshot = oid if _of(made, entries) else None
        manifest.save(directory, Manifest(held.vault, oid, name, snapshot, tuple(entries)))
    return made


class _State:
    """What a branch holds now, and what files make of it."""

    def __init__(self, vault: Vault, name: str, target: Target, held: Manifest) -> None:
        self.name = name
        self.volumes = {volume.name: volume for volume in target.volumes}
        self.attachments: dict[str, Volume] = {}
        self._vault = vault
        self._new = isinstance(target.branch, NewBranch)
        if self._new:
            self._together = _saved_together(held)
            return
        head = positions.head_of(vault, refs.find(vault, name), exact=False)
        self.attachments = {each.name: each for each in head.attachments}
        self._together = _Together(set(target.volumes), set(head.attachments))

    def reads(self, directory: Path, entry: Entry) -> bool:
        """Whether the manifest does not tell what is needed of a file."""
        return not entry.unchanged(directory) or (self._new and self._stored(entry) is None)

    def takes(self, entry: Entry, source: RawImage | None, *, force: bool) -> bool:
        """Whether a file's content goes into the branch, for it is the one that was changed.

        Only a file that was written to, and whose volume is another by now, is read for that.
        """
        if self._new or source is None:
            return self._new
        then, now = _checked(entry), self._among(entry).get(entry.name)
        if now == then:
            return True
        scratch = Intake(self._vault, silent, source.size, Scratch(self._vault.objects))
        mine = scratch.volume(entry.name, source, self._stored(entry) or now)
        if mine not in (then, now) and not force:
            raise self._conflict(entry, source.path)
        return mine != then

    def take(self, entry: Entry, source: RawImage | None, intake: Intake) -> None:
        among, stored = self._among(entry), self._stored(entry)
        if source is not None:
            stored = intake.volume(entry.name, source, stored or among.get(entry.name))
        assert stored is not None, "what is not stored is read"
        among[entry.name] = stored

    def kept(self, taken: Iterable[Entry]) -> list[Volume]:
        """The attachments of the new state: not the memory that belongs to other disks."""
        changed = {entry.name for entry in taken if entry.attachment and self._changed(entry)}
        same = set(self.volumes.values()) == self._together.volumes
        return [
            each
            for each in self.attachments.values()
            if each.name not in attachments.RUNNING_STATE
            or each.name in changed
            or (same and each in self._together.attachments)
        ]

    def _changed(self, entry: Entry) -> bool:
        return self._among(entry)[entry.name] != _checked(entry)

    def entry(self, entry: Entry) -> Entry:
        """The manifest's entry of a file whose content the branch has."""
        volume = self._among(entry)[entry.name]
        return replace(entry, size=volume.size, root=volume.root.hex())

    def _among(self, entry: Entry) -> dict[str, Volume]:
        return self.attachments if entry.attachment else self.volumes

    def _stored(self, entry: Entry) -> Volume | None:
        """What was checked out; the tree of a head between two checkpoints is not stored."""
        then = _checked(entry)
        return then if then and root_known(self._vault, then.root) else None

    def _conflict(self, entry: Entry, path: Path) -> Conflict:
        what = f"{'attachment' if entry.attachment else 'volume'} '{entry.name}'"
        if _checked(entry) is None:
            why = f"{path} was not checked out, and branch '{self.name}' has a {what}"
        elif entry.name not in self._among(entry):
            why = f"{path} was changed, and branch '{self.name}' no longer has the {what}"
        else:
            why = f"{path} was changed, and so was {what} of branch '{self.name}'"
        return Conflict(
            f"{why}; nothing was recorded. -b with a new name keeps the files as a branch of "
            "their own, --force prefers the file",
            kind="volume-changed",
        )


class _Together(NamedTuple):
    """Disks, and the attachments that were saved with them as they are."""

    volumes: set[Volume]
    attachments: set[Volume]


def _saved_together(held: Manifest) -> _Together:
    """What was checked out, if all of it is of one snapshot; that may be pruned by now."""
    found = _Together(set(), set())
    for entry in held.entries if held.snapshot is not None else ():
        then = _checked(entry)
        assert then is not None, "only what is complete is taken in"
        (found.attachments if entry.attachment else found.volumes).add(then)
    return found


def _of(made: Snapshot, entries: Iterable[Entry]) -> bool:
    """Whether all files are as a snapshot has them: some may stay behind what the branch has."""
    return all(
        _checked(entry) in (made.attachments if entry.attachment else made.volumes)
        for entry in entries
    )


def _held(vault: Vault, directory: Path) -> Manifest:
    held = manifest.load(directory)
    if held is None:
        raise NotFound(f"{directory} is no checkout: it has no {manifest.FILE_NAME}")
    if held.vault != vault.options.vault_id.hex():
        raise Conflict(
            f"{directory} is a checkout of another vault; 'blockvault import' takes its files",
            kind="other-vault",
        )
    return held


def _checked_out(held: Manifest, directory: Path) -> str:
    if held.branch is None:
        raise BadRequest(
            f"{directory} is a checkout of {held.revision}, which is no branch, so it is not known "
            "where to record it; -b NAME says that",
            kind="not-a-branch",
        )
    return held.branch


def _refuse_new(target: Target, name: str, directory: Path) -> None:
    """A branch that was checked out is not made anew."""
    if isinstance(target.branch, NewBranch):
        raise NotFound(
            f"branch '{name}', which {directory} is a checkout of, was deleted or renamed; "
            "nothing was recorded. -b NAME records into another one",
            kind="no-branch",
        )


def _opened(
    vault: Vault, directory: Path, entries: Iterable[Entry], stack: ExitStack
) -> dict[str, RawImage]:
    """The files of some entries, by name, as long as the stack keeps them open."""
    return {
        entry.file: stack.enter_context(
            images.opened(directory / entry.file, "raw", vault.path, False)
        )
        for entry in entries
    }


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
    name = check_volume_name(path.stem)
    return Entry(name, path.name, False, 0, ZERO_ID.hex(), manifest.WRITING)


def _checked(entry: Entry) -> Volume | None:
    """What was checked out as this file; None for one that came since."""
    if not entry.complete:
        return None
    return Volume(entry.name, entry.size, bytes.fromhex(entry.root))


def _seen(entry: Entry, source: RawImage | None) -> Entry:
    """The entry of a file as it was when it was read, if it was."""
    if source is None:
        return entry
    now = source.fingerprint
    return replace(entry, fingerprint=(now.size, now.mtime_ns, now.inode))
