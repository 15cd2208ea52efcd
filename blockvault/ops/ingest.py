"""Images into a vault: some files become the volumes of a branch's next snapshot, in one event.

``intake`` reads them and stores their blocks as they come, in commits without an event; only the
last commit, with the event, makes them part of history.  An import that stops before leaves blocks
that nothing points at, and the same command run again finds them there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blockvault.errors import BadRequest, Busy, Conflict, IOFailed
from blockvault.model import events
from blockvault.model.checks import as_text
from blockvault.model.names import check_new_name, check_volume_name
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import Progress, formats, images, refs, silent, snapshots
from blockvault.ops.images import RawImage
from blockvault.ops.intake import Intake

if TYPE_CHECKING:
    from blockvault.vault import Vault

_LEAST_HOLE = 2
"""Free pages in a row that an import gives back: what is shorter the next one writes over."""


class Image(NamedTuple):
    """One image to import; ``format`` None takes it from the file's name."""

    path: Path
    volume: str
    format: str | None = None


def import_images(
    vault: Vault,
    images_: Sequence[Image],
    *,
    branch: str | None = None,
    message: str = "",
    author: str | None = None,
    allow_backing: bool = False,
    progress: Progress | None = None,
) -> Snapshot:
    """Make the images volumes of the branch's next snapshot; other volumes stay as they are.

    The branch is made when it does not exist.  Nothing is recorded unless every image was read
    whole and did not change meanwhile.
    """
    _check_names(images_)
    snapshots.check_words(message, author)
    to_be_made(vault, branch)
    with ExitStack() as stack:
        stack.enter_context(vault.guard())
        sources = [
            (image, stack.enter_context(_opened(vault, image, allow_backing))) for image in images_
        ]
        for _, source in sources:
            if not source.size:
                raise BadRequest(f"{source.path} is empty: a volume has at least one byte")
        target = hold_target(vault, branch, stack)
        volumes = {volume.name: volume for volume in target.volumes}
        intake = Intake(vault, progress or silent, sum(source.size for _, source in sources))
        for image, source in sources:
            volumes[image.volume] = intake.volume(image.volume, source, volumes.get(image.volume))
        intake.finish()
        for _, source in sources:
            source.check_unchanged()
        names = " ".join(str(image.path) for image in images_)
        return target.record(volumes.values(), names, message, author)


class Target(NamedTuple):
    """The branch that an import goes to, held until it is recorded."""

    vault: Vault
    branch: int | snapshots.NewBranch
    volumes: Sequence[Volume]

    def record(
        self,
        volumes: Iterable[Volume],
        source: str,
        message: str,
        author: str | None,
        attachments: Sequence[Volume] = (),
    ) -> Snapshot:
        """Make ``volumes`` the branch's state and its next snapshot.

        Of ``source``, which names files, what is no UTF-8 is replaced: it is for people only.
        """
        ordered = tuple(sorted(volumes))
        made = snapshots.record(
            self.vault,
            self.branch,
            ordered,
            lambda branch, snapshot: events.Imported(
                branch=branch, volumes=ordered, snapshot=snapshot, source=as_text(source)
            ),
            message=message,
            author=author,
            attachments=attachments,
        )
        # The import is recorded: a disk that cannot give space back now changes nothing of that.
        with suppress(IOFailed, Busy):
            self.vault.give_back(_LEAST_HOLE)
        return made


def hold_target(vault: Vault, name: str | None, stack: ExitStack) -> Target:
    """The named branch under a lease, the current one for None, or one that is to be made."""
    if name is not None and to_be_made(vault, name):
        return Target(vault, snapshots.NewBranch(name), ())
    session = stack.enter_context(vault.session(name, holder="an import"))
    return Target(vault, session.branch.id, session.checkpoint())


def to_be_made(vault: Vault, name: str | None) -> bool:
    """Whether there is no branch of this name yet; ``BadRequest`` if a new one may not have it.

    Asked first where what is recorded takes long.
    """
    if name is None or name in {branch.name for branch in refs.listing(vault)}:
        return False
    check_new_name(name)
    return True


def _check_names(images_: Sequence[Image]) -> None:
    if not images_:
        raise BadRequest("no image to import")
    names = [image.volume for image in images_]
    for name in names:
        check_volume_name(name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Conflict(f"two images would become volume '{twice[0]}'; import them one by one")


def _opened(vault: Vault, image: Image, allow_backing: bool) -> AbstractContextManager[RawImage]:
    chosen = formats.to_import(image.path, image.format)
    return images.opened(image.path, chosen, vault.path, allow_backing)
