"""What a session that was killed had promised and not stored: found, and stored.

A journal that nobody uses any more is taken over by whoever opens its branch next, and the first
thing that a session does is to store what it says.  So opening a vault opens such branches for a
moment, and everybody who takes a lease without a session makes sure that there is none.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from blockvault.errors import VaultError
from blockvault.lease import RECOVERY, Lease
from blockvault.store import journal

if TYPE_CHECKING:
    from blockvault.ops.refs import Branch
    from blockvault.vault import Vault


def recover(vault: Vault) -> None:
    """Store what journals say that nobody uses; what cannot be stored now stays where it is.

    Who then opens the branch to write is told why; who reads sees the state before.
    """
    left = journal.left_behind(vault.path)
    if left and not vault.store.readonly:
        for branch in vault.branches():
            if branch.id in left:
                with suppress(VaultError):
                    _settle(vault, branch)


def _settle(vault: Vault, branch: Branch) -> None:
    """Store what the journal of one branch says.  Nothing that its machine could miss changes."""
    from blockvault.session import Session

    Session(vault, branch, RECOVERY, successor=True).close()


def lease(vault: Vault, branch: Branch, holder: str, *, successor: bool = False) -> Lease:
    """The lease of a branch whose journal, if it had one, is stored.  ``Busy`` as for ``Lease``."""
    while True:
        taken = Lease(vault.path, branch.id, branch.name, holder, successor=successor)
        if not journal.path_of(vault.path, branch.id).exists():
            return taken
        taken.release()
        _settle(vault, branch)
