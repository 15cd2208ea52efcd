"""Files that a command writes for its user: never in the vault, and there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockvault.errors import BadRequest, Conflict, IOFailed, NotFound

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""How file systems say that they have no hard links, FAT for one."""


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
def written(target: Path, *, force: bool) -> Iterator[tuple[int, Path]]:
    """A temporary file beside ``target`` that becomes it when the block ends well.

    ``force`` lets it replace another, as which it can be read and written then.  Of a symbolic link
    it becomes what that points at.  As with any copy, it is the system that brings it to the disk
    in its own time.
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
        if force:
            _make_alike(temporary, place)
            temporary.replace(place)
        else:
            temporary.chmod(0o666 & ~_umask())
            _put(temporary, place, target)
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)


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
        try:
            os.link(fresh, place)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _put_unlinked(fresh, place)
    except FileExistsError:
        raise taken(target) from None


def _put_unlinked(fresh: Path, place: Path) -> None:
    """The same on a file system without hard links: an empty file keeps the place meanwhile."""
    os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    try:
        fresh.replace(place)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
