"""A server of one volume, as a program of its own, for tests that take the floor from under it.

    python -m tests.faults.nbd_case VAULT SOCKET MODE

It prints one line when clients may come.  Mode ``safe`` is the server as it is; ``deaf`` answers
a FLUSH without doing it, ``loose`` does not sync its journal: every test of durability must notice.
The journal is used from the third FLUSH on and is small, so that both ways of a FLUSH are met,
and all that a journal goes through.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from blockvault import Vault, journaling
from blockvault.nbd import service
from blockvault.nbd.exports import Exports, GroupFlush
from blockvault.nbd.server import Server
from blockvault.nbd.volumes import VaultCatalogue
from blockvault.store import filesystem, journal

SIZE = 16 << 20
BRANCH, VOLUME = "main", "vda"


def prepare(directory: Path) -> None:
    """A vault with one empty volume."""
    with Vault.create(directory) as vault, vault.session(BRANCH) as session:
        session.create_volume(VOLUME, SIZE)


def main(directory: str, path: str, mode: str) -> None:
    if mode == "deaf":
        GroupFlush.flush = lambda self: None  # type: ignore[method-assign]
    if mode == "loose":
        filesystem.open_synced = partial(os.open, flags=os.O_RDWR)  # the journal's alone
    journaling.AFTER_FLUSHES, journal.HALF, service.SURE = 2, 64 << 10, 1
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Vault.open(directory) as vault, vault.session(BRANCH) as session:
        server = Server(Exports(VaultCatalogue(vault, {BRANCH: session})))
        server.listen_unix(Path(path))
        print("ready", flush=True)
        stop.wait()
        server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
