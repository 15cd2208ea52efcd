"""blockvault: git for virtual machines.

A *vault* keeps every write of every disk it holds.  Each write is an *event* in an append-only log
and points at content-addressed *blocks*; a *snapshot* is an immutable object that names one Merkle
tree per volume; a *branch* is a line of history with one live head.

    blockvault.open(path) / Vault.create(path)      the vault                      vault.py
    vault.session(branch)                           the writable head of a branch  session.py
    vault.device(revision, volume)                  any past state, read-only      ops/reading.py

How a session's writes become durable, ``committer`` says: they are ``pending`` in memory,
``pipeline`` takes them batch by batch, ``storing`` makes rows and frames of a batch, and
``transaction`` one commit.  ``journaling`` promises flushes before that, ``behind`` commits before
anybody waits, ``pacing`` slows writers down.  ``folding`` makes trees of what was written; ``head``
is the device that takes it, under a ``lease``.  ``pins`` say what a collection must leave;
``files`` writes small files, and ``libc`` has what Python does not offer of the C library.

Layers, each importing only those above it: vocabulary (ids, errors, encoding, device) · model
(pure algorithms) and store (bytes on disk), which never see each other · vault, session, ops ·
edges (nbd) · cli.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockvault.vault import Vault

__version__ = "0.1.0"
__all__ = ["Vault", "__version__", "open"]


def open(path: str | os.PathLike[str] = ".") -> Vault:  # noqa: A001 - reads as blockvault.open
    """Open the vault at ``path``: a vault directory, or any directory inside its work tree."""
    from blockvault.vault import Vault

    return Vault.open(path)


def __getattr__(name: str) -> object:
    """``from blockvault import Vault`` without making every import of the package pay for it."""
    if name == "Vault":
        from blockvault.vault import Vault

        return Vault
    raise AttributeError(name)
