"""A branch put together from several sources: new disks, images, volumes of other revisions.

One snapshot is the result, with whatever files are to be kept with it.  A volume of another
revision is not copied: its root is named again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blockvault.errors import BadRequest, Conflict, NotFound
from blockvault.ids import ZERO_ID
from blockvault.model.names import check_volume_name
from blockvault.model.snapshot import Snapshot, Volume
from blockvault.ops import (
    Progress,
    attachments,
    formats,
    images,
    ingest,
    resolve,
    silent,
    snapshots,
    states,
)
from blockvault.ops.images import RawImage
from blockvault.ops.intake import Intake

if TYPE_CHECKING:
    from blockvault.vault import Vault


@dataclass(frozen=True, slots=True)
class Source:
    """Where a volume comes from: exactly one of a size, an image, a revision's volume.

    An image may refer to other files if it is ``trusted``.
    """

    volume: str
    size: int | None = None
    image: Path | None = None
    format: str | None = None
    trusted: bool = False
    revision: str | None = None
    of: str | None = None


def compose(
    vault: Vault,
    branch: str,
    sources: Sequence[Source],
    files: Mapping[str, bytes | Path],
    *,
    message: str = "",
    author: str | None = None,
    origin: str = "compose",
    progress: Progress | None = None,
) -> Snapshot:
    """Give ``branch`` these volumes, and ``files`` as attachments, in one snapshot.

    The branch is made when it does not exist; volumes of it that are not named stay as they are.
    """
    _check_names(sources)
    snapshots.check_words(message, author)
    ingest.to_be_made(vault, branch)
    with ExitStack() as stack:
        stack.enter_context(vault.guard())
        opened = {
            source.volume: stack.enter_context(_open(vault, source))
            for source in sources
            if source.image is not None
        }
        target = ingest.hold_target(vault, branch, stack)
        volumes = {volume.name: volume for volume in target.volumes}
        total = sum(image.size for image in opened.values())
        intake = Intake(vault, progress or silent, total)
        for source in sources:
            name = source.volume
            image = opened.get(name)
            if image is not None:
                volumes[name] = intake.volume(name, image, volumes.get(name))
            elif source.revision is not None:
                volumes[name] = _named(vault, source)
            else:
                volumes[name] = _empty(source)
        intake.finish()
        for image in opened.values():
            image.check_unchanged()
        kept = attachments.keep(vault, files)
        return target.record(volumes.values(), origin, message, author, kept)


def _check_names(sources: Sequence[Source]) -> None:
    names = [check_volume_name(source.volume) for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Conflict(f"volume '{twice[0]}' is given twice")


def _open(vault: Vault, source: Source) -> AbstractContextManager[RawImage]:
    assert source.image is not None
    chosen = formats.to_import(source.image, source.format)
    return images.opened(source.image, chosen, vault.path, source.trusted)


def _empty(source: Source) -> Volume:
    if not source.size:
        raise BadRequest(f"volume '{source.volume}' needs a size of at least one byte")
    return Volume.checked(source.volume, source.size, ZERO_ID)


def _named(vault: Vault, source: Source) -> Volume:
    """A volume of another revision, its overlay folded in."""
    assert source.revision is not None
    position = resolve.resolve(vault, source.revision)
    wanted = position.volume(source.of)
    volumes, frames = states.materialized(vault, position)
    if frames:
        with vault.transaction() as transaction:
            transaction.add_frames(frames)
    for volume in volumes:
        if volume.name == wanted.name:
            return volume._replace(name=source.volume)
    raise NotFound(f"'{source.revision}' has no volume '{source.of}'", kind="no-volume")
