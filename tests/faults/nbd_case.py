"""A server of one volume, as a program of its own, for tests that take the floor from under it.

    python -m tests.faults.nbd_case VAULT SOCKET MODE

It prints one line when clients may come.  Mode ``safe`` is the server as it is; ``deaf`` answers
a FLUSH without doing it, which every test of durability must notice.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from blockvault import Vault
from blockvault.nbd.exports import Exports, GroupFlush
from blockvault.nbd.server import Server
from blockvault.nbd.volumes import VaultCatalogue

SIZE = 16 << 20
BRANCH, VOLUME = "main", "vda"


def prepare(directory: Path) -> None:
    """A vault with one empty volume."""
    with Vault.create(directory) as vault, vault.session(BRANCH) as session:
        session.create_volume(VOLUME, SIZE)


def main(directory: str, path: str, mode: str) -> None:
    if mode == "deaf":
        GroupFlush.flush = lambda self: None  # type: ignore[method-assign]
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
