"""A state as files in a directory; ``checkin`` is the way back.

    plan     what each file must become, and how many bytes that takes
    execute  writes just those: whole new files, or the blocks that differ

Each volume is a sparse ``NAME.raw``, each attachment a file of its name.  The manifest tells what
the files hold; a file that was written to since is never overwritten without ``force``, because
its changes exist nowhere else.  While a file is being written the manifest says so: an interrupted
checkout is done again without asking, and nobody takes half a file for a volume.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blockvault.errors import BadRequest, Conflict, IOFailed
from blockvault.ids import ZERO_ID
from blockvault.model import diff, tree
from blockvault.model.diff import Side
from blockvault.model.snapshot import Volume
from blockvault.ops import Progress, copying, images, manifest, refs, silent, states, targets
from blockvault.ops.intake import Intake
from blockvault.ops.manifest import Entry, Manifest
from blockvault.ops.reading import StateDevice, of_volume, open_device, try_pin
from blockvault.store import filesystem

if TYPE_CHECKING:
    from blockvault.ops.positions import Position
    from blockvault.vault import Vault


class Item(NamedTuple):
    """What becomes of one file; ``mode`` is new, update, unchanged or remove."""

    name: str
    path: Path
    size: int
    mode: str
    bytes_to_write: int
    attachment: bool
    root: bytes
    extents: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A checkout that can be shown before it is done."""

    position: Position
    directory: Path
    before: Manifest | None
    items: tuple[Item, ...]
    nodes: tree.Scratch


def plan(
    vault: Vault,
    rev: str,
    directory: Path,
    *,
    volumes: Sequence[str] | None = None,
    force: bool = False,
) -> Plan:
    """What it takes to make ``directory`` hold a revision; nothing is written.

    Without ``volumes`` the directory gets exactly the revision: files of an earlier checkout that
    the revision does not have are removed.  ``Conflict`` for files with changes of their own.
    """
    if directory.exists() and not directory.is_dir():
        raise BadRequest(f"{directory} is not a directory")
    targets.refuse_inside(vault.path, directory)
    with vault.guard(reading=True):
        return _plan(vault, vault.resolve(rev), directory, volumes, force)


def _plan(
    vault: Vault, position: Position, directory: Path, volumes: Sequence[str] | None, force: bool
) -> Plan:
    before = manifest.load(directory)
    if before is not None and before.vault != vault.options.vault_id.hex():
        raise Conflict(f"{directory} is a checkout of another vault", kind="other-vault")
    nodes = tree.Scratch(vault.objects)
    wanted = _wanted(vault, position, volumes, nodes)
    planner = _Planner(vault, directory, before, nodes, force)
    items = [planner.item(volume, attachment) for volume, attachment in wanted]
    _refuse_shared(items)
    if before is not None and volumes is None:
        kept = {item.path.name for item in items}
        items += [planner.removal(entry) for entry in before.entries if entry.file not in kept]
    return Plan(position, directory, before, tuple(items), nodes)


def _wanted(
    vault: Vault, position: Position, volumes: Sequence[str] | None, nodes: tree.Scratch
) -> list[tuple[Volume, bool]]:
    """Volumes as plain trees, and attachments unless only some volumes are asked for."""
    plain = {volume.name: volume for volume in states.folded(vault, position, nodes)}
    if volumes is not None:
        return [(plain[position.volume(name).name], False) for name in volumes]
    return [(volume, False) for volume in plain.values()] + [
        (attachment, True) for attachment in position.attachments
    ]


def _refuse_shared(items: Sequence[Item]) -> None:
    """A volume ``v`` and an attachment ``v.raw`` would both be the file ``v.raw``."""
    volumes = {item.path: item.name for item in items if not item.attachment}
    for item in items:
        if item.attachment and item.path in volumes:
            raise Conflict(
                f"volume '{volumes[item.path]}' and attachment '{item.name}' would both be "
                f"{item.path}; nothing was changed. --volume takes volumes alone",
                kind="file-exists",
            )


class _Planner:
    """Compares files with what they should be."""

    def __init__(
        self,
        vault: Vault,
        directory: Path,
        before: Manifest | None,
        nodes: tree.Scratch,
        force: bool,
    ) -> None:
        self.vault = vault
        self.directory = directory
        self.before = before
        self.nodes = nodes
        self.force = force

    def item(self, volume: Volume, attachment: bool) -> Item:
        file = volume.name if attachment else f"{volume.name}.raw"
        path = self.directory / file
        if path.is_symlink():
            self._refuse(path, "is a symbolic link; --force puts a file in its place")
            mode, old = "new", Side(0, ZERO_ID)
        elif path.exists():
            mode, old = "update", self._present(path, volume)
        else:
            mode, old = "new", Side(0, ZERO_ID)
        block = self.vault.options.block_size
        new = Side(volume.size, volume.root)
        extents = tuple(
            (offset, min(length, volume.size - offset))
            for offset, length in diff.changed_bytes(self.nodes, old, new, block)
            if offset < volume.size
        )
        if mode == "update" and not extents and old.size == volume.size:
            mode = "unchanged"
        count = sum(length for _, length in extents)
        return Item(volume.name, path, volume.size, mode, count, attachment, volume.root, extents)

    def removal(self, entry: Entry) -> Item:
        path = self.directory / entry.file
        if path.exists() and entry.complete and not entry.unchanged(self.directory):
            self._refuse_changed(path)
        return Item(entry.name, path, 0, "remove", 0, entry.attachment, ZERO_ID, ())

    def _present(self, path: Path, volume: Volume) -> Side:
        """What the file holds: from the manifest, or by reading it."""
        entry = self.before.entry(path.name) if self.before else None
        if entry is None or (entry.complete and not entry.unchanged(self.directory)):
            self._refuse_changed(path)
        elif entry.complete and root_known(self.vault, bytes.fromhex(entry.root)):
            return Side(entry.size, bytes.fromhex(entry.root))
        with images.opened(path, "raw", self.vault.path, False) as source:
            if not source.size:
                return Side(0, ZERO_ID)
            intake = Intake(self.vault, silent, source.size, self.nodes)
            read = intake.volume(volume.name, source, volume)
        return Side(read.size, read.root)

    def _refuse_changed(self, path: Path) -> None:
        self._refuse(
            path,
            "holds changes that no snapshot has; 'blockvault snapshot --from "
            f"{self.directory}' takes them in, --force overwrites them",
        )

    def _refuse(self, path: Path, why: str) -> None:
        if not self.force:
            raise Conflict(f"{path} {why}", kind="file-changed")


def execute(vault: Vault, what: Plan, *, progress: Progress | None = None) -> Plan:
    """Bring the directory to the planned state; the manifest follows file by file.

    In the end all of it is on the disk, the names too.
    """
    _make(what.directory)
    with manifest.alone(what.directory):
        if manifest.load(what.directory) != what.before:
            raise Conflict(
                f"the files of {what.directory} were written by another command since they were "
                "looked at; nothing was changed, run it again",
                kind="checkout-changed",
            )
        return _execute(vault, what, progress or silent)


def _execute(vault: Vault, what: Plan, report: Progress) -> Plan:
    done, total = 0, sum(item.bytes_to_write for item in what.items)
    held = Manifest(
        vault.options.vault_id.hex(),
        what.position.text,
        _branch(vault, what.position),
        None,  # until the last file is there
        what.before.entries if what.before else (),
    )
    for item in what.items:
        if item.mode == "unchanged":
            held = held.having(_entry(item))
            continue
        if item.mode == "remove":
            item.path.unlink(missing_ok=True)
            held = held.without(item.path.name)
            continue
        held = held.having(replace(_entry(item), fingerprint=manifest.WRITING))
        manifest.save(what.directory, held)
        try:
            _write(vault, what, item, partial(_shifted, report, done, total))
        except Conflict:
            # The next checkout must not take somebody's file for a half-written one of ours.
            manifest.save(what.directory, held.without(item.path.name))
            raise
        done += item.bytes_to_write
        held = held.having(_entry(item))
    manifest.save(what.directory, replace(held, snapshot=_snapshot(what)))
    report(total, total)
    return what


def _make(directory: Path) -> None:
    """Make a directory, and those that it lies in, durably, if they are not there."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for each in missing:
            filesystem.sync_names(each.parent)
    except OSError as error:
        raise IOFailed(f"{directory} cannot be made: {error.strerror}") from None


def _branch(vault: Vault, position: Position) -> str | None:
    """The branch that was asked for; None for a tag, a snapshot or a moment, though on a branch."""
    return position.name if refs.branch_of(vault, position.text) == position.name else None


def _snapshot(what: Plan) -> str | None:
    """The snapshot that all files are of, those too that stay as they were."""
    snapshot, before = what.position.snapshot, what.before
    oid = snapshot.hex() if snapshot else None
    if before is None or before.snapshot == oid:
        return oid
    named = {item.path.name for item in what.items}
    return oid if all(entry.file in named for entry in before.entries) else None


def _shifted(report: Progress, start: int, total: int, count: int) -> None:
    report(start + count, total)


def _write(vault: Vault, what: Plan, item: Item, report: Callable[[int], None]) -> None:
    """Write the item's extents into its file; in a new file zeros stay holes."""
    device = _device(vault, what.position, item)
    with (
        copying.writing(f"{item.path} is incomplete: run the checkout again"),
        _opened(item) as file,
    ):
        os.ftruncate(file.fileno(), item.size)
        if item.mode == "new":
            share = item.bytes_to_write / max(1, item.size)
            copying.copy_out(device, file.fileno(), lambda at, _: report(int(at * share)))
        else:
            copying.write_ranges(device, file.fileno(), item.extents, report)
        # The kernel's clock stands still for milliseconds: a time of our own tells even a write
        # that comes at once from ours.
        now = time.time_ns()
        os.utime(file.fileno(), ns=(now, now))
        os.fsync(file.fileno())


def _opened(item: Item) -> FileIO:
    """The item's file, never what a link in its place points to: that is somebody else's.

    Nor what was made since the plan: it is somebody's, or another item's where case makes no name.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    if item.mode == "new":
        flags |= os.O_CREAT | os.O_EXCL
        if item.path.is_symlink():
            item.path.unlink()
    try:
        return open(os.open(item.path, flags, 0o666), "wb", buffering=0)
    except FileExistsError:
        raise Conflict(
            f"{item.path} exists meanwhile, and was left as it is", kind="file-exists"
        ) from None


def _device(vault: Vault, position: Position, item: Item) -> StateDevice:
    if not item.attachment:
        return open_device(vault, position, item.name)
    attachment = Volume(item.name, item.size, item.root)
    return of_volume(vault, attachment, pin=try_pin(vault, position))


def _entry(item: Item) -> Entry:
    return Entry(
        item.name,
        item.path.name,
        item.attachment,
        item.size,
        item.root.hex(),
        manifest.fingerprint(item.path),
    )


def root_known(vault: Vault, root: bytes) -> bool:
    """Whether a tree is stored; its nodes and blocks then are, too."""
    with vault.read() as reader:
        return root == ZERO_ID or bool(reader.known([root]))
