"""Write transactions of somebody who has time: a collection, beside those whose writes wait.

A writer that queues for the lock would not get it between two transactions that follow at once, for
whoever let go of it is back before the other one is awake.  So while writers come, there is a rest
after each transaction, as long as the work since the last one took.  As long as nobody comes there
is nothing to rest for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockvault.store.types import Writer
    from blockvault.vault import Vault

POLITE_SECONDS = 1.0
"""How long others count as coming after one had to wait: they are not at the lock all the time."""
_LEAST, _MOST = 0.002, 0.1


class Turns:
    """Takes the vault's write lock again and again."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._begun = time.monotonic()
        self._until = 0.0

    @property
    def alone(self) -> bool:
        """Whether nobody came lately: then a transaction may be longer."""
        return time.monotonic() >= self._until

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """One transaction, and the rest behind it."""
        with self._vault.store.write() as writer:
            yield writer
            awaited = writer.awaited
        now = time.monotonic()
        if awaited:
            self._until = now + POLITE_SECONDS
        if now < self._until:
            time.sleep(max(_LEAST, min(now - self._begun, _MOST)))
        self._begun = time.monotonic()
