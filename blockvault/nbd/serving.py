"""A vault being served: sessions, exports, server and control socket, begun and ended together.

    Serving ── sessions   one for each branch that is written, each with its lease
            ── exports    what clients may open (volumes.VaultCatalogue)
            ── server     the sockets that they connect to
            ── control    what `status` and `snapshot` ask

The end goes the other way round: no new requests, answers to what has come, flush, leases back.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from blockvault.errors import BadRequest, NotFound
from blockvault.nbd.control import ControlServer
from blockvault.nbd.exports import Exports
from blockvault.nbd.server import MAX_CONNECTIONS, Server
from blockvault.nbd.volumes import VaultCatalogue
from blockvault.ops import attachments
from blockvault.ops.refs import branch_of
from blockvault.session import Session
from blockvault.vault import Vault

log = logging.getLogger(__name__)

HOLDER = "an NBD server"
LEAST_CACHE = 1 << 20
"""Bytes that a branch must be able to hold: a writer waits until there is room."""
DEFAULT_SOCKET = "nbd.sock"


class Serving:
    """Begins with the sessions; listens when told to; ends with ``close`` or its ``with``.

    ``exports`` are revisions.  A branch's name means its writable head, unless ``read_only`` or
    ``copy_on_write``; ``Busy`` names who else writes it.  Any other revision is offered read-only.
    ``cache`` is how many bytes each session may hold in memory, ``read_cache`` how many bytes of
    decoded blocks are kept in a file; ``stop`` is set when somebody at
    the control socket wants the end.
    """

    def __init__(
        self,
        vault: Vault,
        exports: Sequence[str],
        *,
        read_only: bool = False,
        copy_on_write: bool = False,
        only_listed: bool = False,
        exact: bool = False,
        tls: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
        cache: int | None = None,
        read_cache: int = 0,
        stop: threading.Event | None = None,
    ) -> None:
        if cache is not None and cache < LEAST_CACHE:
            raise BadRequest(f"a cache of {cache} bytes holds too little: use 1M at least")
        self._vault = vault
        self._since = time.time()
        self._cache = cache
        self._copy_on_write = copy_on_write
        self._tls = tls
        self.stopping = stop if stop is not None else threading.Event()
        if read_cache:
            vault.objects.keep_decoded(vault.path, read_cache)
        with ExitStack() as undo:
            self.sessions, listed = self._split(
                exports, undo, writable=not (read_only or copy_on_write), exact=exact
            )
            self.catalogue = VaultCatalogue(
                vault,
                self.sessions,
                listed,
                only_listed=only_listed,
                copy_on_write=copy_on_write,
                exact=exact,
            )
            undo.callback(self.catalogue.close)
            self.names = self.catalogue.names()
            self.server = Server(Exports(self.catalogue), tls=tls, max_connections=max_connections)
            self.server.only_listed = only_listed
            undo.callback(self.server.stop)
            if not vault.store.readonly:  # else nothing can be put there, and nobody has to wait
                control = ControlServer(vault.path, self._handlers())
                undo.callback(control.close)
            self._undo = undo.pop_all()

    def _split(
        self, exports: Sequence[str], undo: ExitStack, *, writable: bool, exact: bool
    ) -> tuple[dict[str, Session], list[str]]:
        """Sessions of the branches among ``exports``, and the other revisions."""
        branches = {branch.name for branch in self._vault.branches()} if writable else set()
        sessions: dict[str, Session] = {}
        listed: list[str] = []
        for revision in dict.fromkeys(exports):
            name = branch_of(self._vault, revision)
            if name in sessions:
                continue
            if name in branches:
                session = undo.enter_context(self._vault.session(name, holder=HOLDER))
                session.limit = session.limit if self._cache is None else self._cache
                sessions[name] = session
            else:
                self._vault.resolve(revision, exact=exact)  # a name that means nothing is told now
                listed.append(revision)
        return sessions, listed

    def close(self) -> None:
        """Answer, flush, release; raises if the last flush failed."""
        self.stopping.set()
        self._undo.close()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what the control socket answers -----------------------------------------------------------

    def _handlers(self) -> dict[str, Any]:
        return {
            "status": self._status,
            "flush": self._flush,
            "snapshot": self._snapshot,
            "stop": self._stop,
        }

    def _session(self, request: Mapping[str, Any]) -> Session:
        try:
            return self.sessions[str(request.get("branch"))]
        except KeyError:
            raise NotFound(f"branch '{request.get('branch')}' is not written here") from None

    def _status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "since": self._since,
            "branches": {
                name: {"dirty_bytes": session.pending_bytes}
                for name, session in self.sessions.items()
            },
            "names": self.names,
            "copy_on_write": self._copy_on_write,
            "tls": self._tls is not None,
            **self.server.status(),
        }

    def _flush(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One branch, or all: then readers of the vault see what was written."""
        if "branch" in request:
            self._session(request).flush()
        else:
            for session in self.sessions.values():
                session.flush()
        return {}

    def _snapshot(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``attachments`` are stored already, under a guard of whoever asks.

        That one may have ended before its request is read, and what it stored be collected.
        """
        author = request.get("author")
        kept = attachments.from_rows(request.get("attachments", ()))
        with self._vault.guard():
            attachments.check_stored(self._vault, kept)
            made = self._session(request).snapshot(
                str(request.get("message", "")),
                author=None if author is None else str(author),
                attachments=kept,
            )
        return {"id": made.id.hex()}

    def _stop(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.stopping.set()
        return {}


def default_socket(vault: Path) -> Path:
    """Where a server listens that was not told where."""
    return vault / DEFAULT_SOCKET
