"""Files that a command writes for its user: never in the vault, and there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockvault import files
from blockvault.errors import BadRequest, Conflict, IOFailed, NotFound
from blockvault.ops import copying
from blockvault.store import filesystem

_UNFINISHED = ".unfinished-"


def refuse_inside(vault: Path, target: Path) -> None:
    """``BadRequest`` if ``target`` is the vault's own directory or a place in it, by any name."""
    own, place = vault.stat(), Path(os.path.realpath(target))
    for each in (place, *place.parents):
        with contextlib.suppress(OSError):
            if os.path.samestat(each.stat(), own):
                raise BadRequest(
                    f"{target} is inside the vault's own directory, {vault}; nothing was "
                    "changed. Name a place outside of it"
                )


def taken(target: Path) -> Conflict:
    """The error for a file that exists and may not be replaced."""
    return Conflict(f"{target} exists; --force replaces it", kind="file-exists")


@contextmanager
def written(target: Path, *, force: bool, sync: bool = False) -> Iterator[tuple[int, Path]]:
    """A temporary file beside ``target`` that becomes it when the block ends well.

    ``force`` lets it replace another, as which it can be read and written then.  Of a symbolic link
    it becomes what that points at.  As with any copy, it is the system that brings it to the disk
    in its own time, unless ``sync`` is set: then its content is there before it gets the name, and
    the name when all is done.
    """
    import tempfile  # dear to load, and who only reads attachments needs it not

    place = Path(os.path.realpath(target))
    try:
        fd, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    except FileNotFoundError:
        raise NotFound(f"directory {place.parent} does not exist") from None
    except OSError as error:
        raise IOFailed(f"{target} cannot be written: {error.strerror}") from None
    temporary = Path(name)
    try:
        yield fd, temporary
        if sync:  # while we may open it; and not fd: another file may have taken its name
            with copying.writing("the target was left as it was"):
                filesystem.sync_path(temporary)
        if force:
            _make_alike(temporary, place)
            temporary.replace(place)
        else:
            temporary.chmod(0o666 & ~_umask())
            _put(temporary, place, target)
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)
    if sync:
        with copying.writing(f"{target} is whole, but a power cut may undo that"):
            filesystem.sync_names(place.parent)


@contextmanager
def written_folder(target: Path) -> Iterator[Path]:
    """A directory in ``target`` whose content becomes that of it when the block ends well.

    ``target`` is made, or is empty; otherwise it is left so.
    """
    from blockvault.store import scratch  # dear to import

    new = not os.path.lexists(target)
    _refuse_full(target)
    target.mkdir(parents=True, exist_ok=True)
    try:
        with scratch.folder(target, _UNFINISHED) as place:
            yield place
            _refuse_full(target, place)
            for path in place.iterdir():
                path.rename(target / path.name)
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                target.rmdir()
        raise


def _refuse_full(target: Path, *ours: Path) -> None:
    from blockvault.store import scratch

    scratch.clean(target, _UNFINISHED)
    if target.exists() and (not target.is_dir() or {*target.iterdir()} - {*ours}):
        raise Conflict(f"{target} exists and is not an empty directory", kind="file-exists")


def _make_alike(fresh: Path, place: Path) -> None:
    """Give a file the mode of the one that it replaces, and its owner as far as we may."""
    try:
        old = place.stat()
    except FileNotFoundError:
        fresh.chmod(0o666 & ~_umask())
        return
    for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):
        with contextlib.suppress(OSError):
            os.chown(fresh, owner, group)
    fresh.chmod(old.st_mode & 0o777)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _put(fresh: Path, place: Path, target: Path) -> None:
    """Give a file the name ``place``, or raise: somebody may have taken it since we looked."""
    try:
        files.put(fresh, place)
    except FileExistsError:
        raise taken(target) from None
