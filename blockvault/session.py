"""A session: the writable head of one branch, held under a lease.

    device.write ─> pending ─ commit ─> overlays; too many entries ─> checkpoint
                    `committer`           └──────── snapshot ────────────┘

What the devices take is made durable by the half of a session that ``committer`` has.  A stored
write is an entry of its volume's overlay.  A checkpoint folds the overlays into new tree roots
(``folding``), so that opening the branch never replays more than a bounded number of blocks; a
snapshot is a checkpoint that also has a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING

from blockvault.committer import Committer
from blockvault.errors import Conflict, NotFound, VaultError
from blockvault.folding import Folding
from blockvault.head import HeadDevice
from blockvault.ids import ZERO_ID
from blockvault.lease import Lease
from blockvault.model import events
from blockvault.model.overlay import Overlay
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import positions, refs, snapshots, states
from blockvault.store import residency

if TYPE_CHECKING:
    from blockvault.store.frames import Frame
    from blockvault.store.gathering import ObjectWriter
    from blockvault.vault import Vault


class Session(Committer):
    """Opened by ``Vault.session``; close it, or use it in a ``with``, to flush and release."""

    def __init__(
        self, vault: Vault, branch: refs.Branch, holder: str, *, successor: bool = False
    ) -> None:
        """``successor`` opens a branch too that is kept for the machine of a dead holder."""
        super().__init__(vault, branch)
        self._lease = Lease(vault.path, branch.id, branch.name, holder, successor=successor)
        try:
            # Else whatever a guest writes would be taken, and could not be stored.
            vault.store.check_writable()
            self._heads = self._open_heads()
            self._folding = Folding(vault, self._heads)
            self._recover(self._heads)
        except BaseException:
            self._journaling.abandon()
            self._lease.release()
            raise

    def _open_heads(self) -> dict[str, HeadDevice]:
        """The branch's volumes as they are now that nobody else can move it."""
        with self.vault.read() as reader:
            self.branch = refs.leased(reader, self.branch)
        position = positions.head_of(self.vault, self.branch, exact=True)
        folded = states.overlays(self.vault, position)
        return {
            volume.name: HeadDevice(
                self, volume.name, volume.size, volume.root, folded.get(volume.name, Overlay())
            )
            for volume in position.volumes
        }

    @property
    def kept(self) -> bool:
        """Whether a process lives that an earlier session kept the branch for; see ``lease``."""
        return self._lease.kept

    def keep(self) -> AbstractContextManager[int]:
        """A file for a process that goes on with the branch should this one die."""
        return self._lease.keep()

    # -- volumes -------------------------------------------------------------------------------

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """Name and size of each volume; the roots are those of the last checkpoint."""
        return tuple(
            Volume(name, head.size, head.tree.root) for name, head in sorted(self._heads.items())
        )

    def device(self, name: str | None = None) -> HeadDevice:
        """The named volume, or the only one, for reading and writing."""
        if name is None and len(self._heads) == 1:
            return next(iter(self._heads.values()))
        try:
            return self._heads[name or ""]
        except KeyError:
            raise NotFound(
                f"branch '{self.branch.name}' has no volume '{name}'; "
                f"it has: {', '.join(sorted(self._heads)) or 'none'}",
                kind="no-volume",
            ) from None

    def create_volume(self, name: str, size: int) -> HeadDevice:
        """Add an empty volume of ``size`` bytes to the branch."""
        if name in self._heads:
            raise Conflict(f"branch '{self.branch.name}' has a volume '{name}' already")
        volume = Volume.checked(name, size, ZERO_ID)
        with self._commit_lock:
            self._change_volumes([*self.checkpoint(), volume], "add", name)
            self._heads[name] = HeadDevice(self, name, size, ZERO_ID, Overlay())
            return self._heads[name]

    def _change_volumes(self, volumes: Sequence[Volume], action: str, name: str) -> None:
        ordered = tuple(sorted(volumes))
        with self.vault.transaction() as transaction:
            transaction.add(
                events.VolumeChanged(
                    branch=self.branch.id, volumes=ordered, action=action, volume=name
                )
            )

    # -- checkpoints and snapshots ---------------------------------------------------------------

    def checkpoint(self) -> list[Volume]:
        """Make all writes durable and fold them: the branch's volumes as plain trees."""
        with self._commit_lock:
            self.flush()
            if self._folding.wanted:
                self._checkpoint_now()
            return list(self.volumes)

    def _stored(self, objects: ObjectWriter) -> None:
        if self._folding.due:
            self._checkpoint_now(objects)

    def _checkpoint_now(self, beside: ObjectWriter | None = None) -> None:
        """Fold the overlays; ``beside`` collects blocks for the commit after this one."""
        with self._pace.standing(), self.vault.guard():
            volumes, frames, runs = self._folding.fold(beside)
            with self.vault.transaction() as transaction:
                transaction.add_frames(frames)
                transaction.add_runs(runs)
                transaction.add(events.Checkpointed(branch=self.branch.id, volumes=volumes))
            if beside is not None:
                beside.passed(frames, transaction.number)
        self._folding.rebase(volumes)
        del frames
        residency.give_back_heap()

    def snapshot(
        self,
        message: str = "",
        *,
        author: str | None = None,
        attachments: Sequence[Volume] = (),
        frames: Sequence[Frame] = (),
    ) -> Snapshot:
        """Flush, and make the state of this moment an immutable version of the branch."""
        with self._commit_lock, self.vault.guard():
            self.flush()
            with self._pace.standing():
                volumes, nodes, runs = self._folding.fold()
                made = snapshots.record(
                    self.vault,
                    self.branch.id,
                    volumes,
                    lambda branch, snapshot: events.Snapshotted(
                        branch=branch, volumes=volumes, snapshot=snapshot
                    ),
                    message=message,
                    author=author,
                    attachments=attachments,
                    frames=[*frames, *nodes],
                    runs=runs,
                )
                self._folding.rebase(volumes)
            return made

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush and give the branch back; the lease goes even when the flush fails.

        After that nothing can be written or recorded through the session and its devices; they can
        still be read.
        """
        if self._ended:
            return
        try:
            self.flush()
            self._journaling.end()
            if self._folding.due_at_the_end:
                # All is durable: a disk without room for this loses nothing.
                with suppress(VaultError):
                    self.checkpoint()
        finally:
            self._end()
            # Not if that was interrupted: what commits behind may still write to the branch.  Then
            # the lease goes with the process.
            self._lease.release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
