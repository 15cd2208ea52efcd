"""A machine's disks over NBD.  This package serves none itself: whoever starts a machine brings
a way to do so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from blockvault.errors import NotFound

if TYPE_CHECKING:
    from blockvault.session import Session
    from blockvault.vm.machine import Machine


class Served(Protocol):
    """The volumes of a session at a unix socket; who connects before ``begin`` waits for it."""

    def begin(self) -> None: ...
    def close(self) -> None: ...
    def status(self) -> dict[str, Any]: ...


Serve = Callable[["Session", Path], Served]
"""Serve the volumes of a session as BRANCH/VOLUME over NBD, on a unix socket at this path."""


def check_there(session: Session, machine: Machine) -> None:
    """``NotFound`` if the branch lacks a volume that is a disk of the machine."""
    have = {name for name, _, _ in session.volumes}
    missing = [disk for disk in machine.disks if disk not in have]
    if missing:
        raise NotFound(
            f"branch '{session.branch.name}' has no volume '{missing[0]}', which its machine has "
            "as a disk",
            kind="no-volume",
        )
