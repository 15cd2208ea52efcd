"""The second socket of a server: what other commands ask of the process that holds a branch.

A branch has one writer.  While a server is it, ``snapshot`` cannot write the branch itself; it asks
the server, which flushes what its clients have written and records the snapshot.  ``status`` asks
for figures.  Each server has a socket of its own in the vault, named after its process, mode 0600;
whoever can open the vault can open it.

One line of JSON each way: ``{"op": "snapshot", "branch": "main", "message": "..."}`` is answered
with ``{"result": {...}}`` or ``{"error": {"class", "kind", "message"}}``, and the error is raised
again on the asking side.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockvault import errors, files
from blockvault.errors import BadRequest, Busy, IOFailed, NotFound, VaultError
from blockvault.nbd import sockets

if TYPE_CHECKING:
    from blockvault.vault import Vault

log = logging.getLogger(__name__)

DIRECTORY = "servers"
MAX_LINE = 1 << 20
ACCEPT_PAUSE = 0.1
ASK_SECONDS = 10.0  # for a client to state its request, and for a server to accept it
SETTLE_SECONDS = 2.0  # for a server to store what it promised, before others read without it
STATUS_SECONDS = 2.0  # for a server to say what it does: one that was stopped holds up nobody
_NAME = re.compile(r"[0-9]+-[0-9]+\.sock")
Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class ControlServer:
    """Answers requests with ``handlers`` (by op), each connection on a thread of its own."""

    def __init__(self, vault: Path, handlers: Mapping[str, Handler]) -> None:
        directory = vault / DIRECTORY
        files.folder(directory)
        self._handlers = dict(handlers)
        # Each container has a process of the same number.
        self.path = directory / f"{os.getpid()}-{int.from_bytes(os.urandom(4))}.sock"
        self._listener = sockets.listen_unix(self.path)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._closing = False
        self._answering: set[threading.Thread] = set()
        self._thread.start()

    def close(self) -> None:
        """Take no request any more, finish the answers to those that came, remove the socket."""
        self._closing = True
        self.path.unlink(missing_ok=True)
        self._listener.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + ASK_SECONDS
        self._thread.join(ASK_SECONDS)
        self._listener.close()
        for thread in list(self._answering):
            # The process may end with this call: who asked it to end waits for the answer.
            thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError as error:
                if self._closing:
                    return
                log.warning("control socket: %s", error)
                time.sleep(ACCEPT_PAUSE)  # what lasts, such as too many open files, is no loop
                continue
            answering = threading.Thread(target=self._serve, args=(connected,), daemon=True)
            self._answering.add(answering)
            try:
                answering.start()
            except RuntimeError:  # no more threads: whoever asks next waits for this one
                self._answering.discard(answering)
                self._serve(connected)

    def _serve(self, connected: socket.socket) -> None:
        try:
            with connected, contextlib.suppress(OSError):
                connected.settimeout(ASK_SECONDS)
                line = read_line(connected)
                if line is not None:
                    connected.sendall(json.dumps(self._answer(line)).encode() + b"\n")
        finally:
            self._answering.discard(threading.current_thread())

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise BadRequest("a request is an object")
            handler = self._handlers.get(str(request.get("op")))
            if handler is None:
                raise BadRequest(f"unknown request {request.get('op')!r}")
            return {"result": handler(request)}
        except VaultError as error:
            return described(error)
        except ValueError as error:
            return described(BadRequest(f"a request that cannot be read: {error}"))
        except Exception as error:
            log.exception("a control request failed")
            return described(IOFailed(f"the server failed: {error}"))


def described(error: VaultError) -> dict[str, Any]:
    """An error as an answer, from which ``result_of`` raises it again."""
    named = {"class": type(error).__name__, "kind": error.reason, "message": error.message}
    return {"error": named}


def read_line(connected: socket.socket) -> bytes | None:
    """One line without its end; None if the peer left first or says too much."""
    data = bytearray()
    while not data.endswith(b"\n"):
        more = connected.recv(65536)
        data += more
        if not more or len(data) > MAX_LINE:
            return None
    return bytes(data[:-1])


# -- the asking side -------------------------------------------------------------------------------


class Remote:
    """A running server of a vault."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pid = int(path.stem.partition("-")[0])

    def ask(self, op: str, *, patience: float | None = None, **fields: Any) -> dict[str, Any]:
        """Send one request and return its result; raises what the server answered.

        ``NotFound`` if the server is gone, ``Busy`` if it is silent for ``patience`` seconds; None
        waits as long as the answer takes.
        """
        try:
            with sockets.connect_unix(self.path, timeout=ASK_SECONDS) as connected:
                connected.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
                connected.settimeout(patience)
                line = read_line(connected)
        except TimeoutError:
            raise Busy(f"the server of process {self.pid} does not answer") from None
        except OSError as error:
            raise NotFound(f"the server of process {self.pid} is gone: {error}") from None
        if line is None:
            raise IOFailed(f"the server of process {self.pid} ended before it answered")
        return result_of(json.loads(line))


def result_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What another process answered; its error is raised again."""
    if "error" in answer:
        error = answer["error"]
        kind = getattr(errors, str(error["class"]), VaultError)
        raise kind(str(error["message"]), kind=str(error["kind"]))
    result: dict[str, Any] = answer["result"]
    return result


def servers(vault: Path) -> list[Remote]:
    """The servers of a vault that seem to run, oldest process number first."""
    return sorted(_sockets(vault), key=lambda remote: remote.pid)


def _sockets(vault: Path) -> Iterator[Remote]:
    for path in (vault / DIRECTORY).glob("*.sock"):
        if _NAME.fullmatch(path.name):
            if _listens(path):
                yield Remote(path)
            else:
                # Its server was killed.  Where nothing can be removed it is passed over, or while
                # somebody else removes it: who only reads needs no more.
                with contextlib.suppress(OSError, Busy):
                    sockets.remove_dead(path)


def _listens(path: Path) -> bool:
    try:
        sockets.connect_unix(path, timeout=ASK_SECONDS).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return path.exists()
    return True


def snapshot(
    vault: Vault, message: str = "", *, branch: str | None = None, author: str | None = None
) -> bytes:
    """``vault.snapshot``, made by the server that writes the branch if there is one; its id."""
    name = vault.branch(branch).name
    try:
        return vault.snapshot(message, branch=name, author=author).id
    except Busy:
        remote = holder(vault.path, name)
        if remote is None:
            raise
    # The server may be somebody else's.
    author = vault.author if author is None else author
    made = remote.ask("snapshot", branch=name, message=message, author=author)
    return bytes.fromhex(made["id"])


def settle(vault: Path) -> None:
    """Have the servers store what they have only promised so far, so that it can be read."""
    for remote in servers(vault):
        with contextlib.suppress(VaultError):
            remote.ask("flush", patience=SETTLE_SECONDS)


def statuses(vault: Path) -> Iterator[tuple[Remote, dict[str, Any] | None]]:
    """What each server says that it does; None for one that does not answer.

    One that ends meanwhile is passed over.
    """
    for remote in servers(vault):
        try:
            status = remote.ask("status", patience=STATUS_SECONDS)
        except Busy:
            yield remote, None
        except (NotFound, IOFailed):
            continue
        else:
            yield remote, status


def holder(vault: Path, branch: str) -> Remote | None:
    """The server that writes a branch, if one does."""
    for remote, status in statuses(vault):
        if status is not None and branch in status["branches"]:
            return remote
    return None
