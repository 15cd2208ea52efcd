"""Listening and connecting: unix sockets that only their owner can open, and TCP.

The path of a unix socket is limited to 107 bytes, a vault's directory is not; so both sides go
through the directory's descriptor in /proc, which is always short.  Other programs do not, so
``unnamable`` tells what they cannot open.  A socket file that nobody
listens on any more is replaced; one that somebody listens on is not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from blockvault import files
from blockvault.errors import BadRequest, Busy, Conflict, IOFailed, NotFound

BACKLOG = 128
SEND_BUFFER = 2 << 20
"""Of a unix socket, whose usual 208 KiB are less than one long reply takes: the server would wait
in the middle of it until the client has read the beginning.  The system may give less.
"""
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
MAX_PATH = 107  # bytes of a path in a socket address
LOCK_SECONDS = 2.0  # for who removes another socket of the same directory


@contextlib.contextmanager
def _short_name(path: Path) -> Iterator[str]:
    """A name for ``path`` that fits into a socket address while the context lasts."""
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"cannot use directory {path.parent}: {error.strerror}") from None
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def unnamable(path: Path) -> str | None:
    """Why clients cannot open this socket, and what helps; None if they can."""
    if len(os.fsencode(path.absolute())) <= MAX_PATH:
        return None
    return (
        f"clients cannot open {path.absolute()}: the path of a socket may have {MAX_PATH} bytes; "
        "'blockvault serve --socket PATH' takes a shorter one"
    )


def connect_unix(path: Path, *, timeout: float | None = None) -> socket.socket:
    """Connect to a unix socket; ``OSError`` if nobody listens there."""
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(timeout)
    try:
        with _short_name(path) as name:
            connected.connect(name)
    except BaseException:
        connected.close()
        raise
    return connected


def listen_unix(path: Path) -> socket.socket:
    """Listen on a unix socket of mode 0600; ``Busy`` if another process listens on it.

    It belongs to the owner of its directory, who can so reach what root serves there, and sees when
    that is dead.
    """
    _clear(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _short_name(path.with_name(f".{os.urandom(8).hex()}")) as fresh:
            listener.bind(fresh)
            try:
                # Until listen() nobody can connect, so there is no moment at which others could.
                os.chmod(fresh, 0o600)
                files.give_named(Path(fresh))
                listener.listen(BACKLOG)
                # Only now: a socket on which nobody listens is taken for a dead server's.
                files.put(Path(fresh), path)
            finally:
                Path(fresh).unlink(missing_ok=True)
    except FileExistsError:
        listener.close()
        raise Busy(f"another server listens on {path}") from None
    except OSError as error:
        listener.close()
        raise IOFailed(f"cannot listen on {path}: {error.strerror}") from None
    return listener


def _clear(path: Path) -> None:
    """Remove a socket that a dead server left behind."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise IOFailed(f"cannot look at {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise Conflict(f"{path} exists and is not a socket")
    try:
        connect_unix(path, timeout=1.0).close()
    except ConnectionRefusedError:
        try:
            remove_dead(path, LOCK_SECONDS)
        except OSError as error:
            raise IOFailed(f"cannot remove the dead socket {path}: {error.strerror}") from None
    except FileNotFoundError:
        return
    except OSError as error:
        raise Busy(f"{path} is in use: {error.strerror}") from None
    else:
        raise Busy(f"another server listens on {path}")


def remove_dead(path: Path, seconds: float = 0) -> None:
    """Remove a socket that has refused, unless a new server has its name by now.

    Whoever removes one has a lock on the directory; so between the second look and the removal
    nobody else can have made room for a new one.  ``Busy`` if that cannot be had for so long.
    """
    with files.locked(path.parent, seconds) as ours:
        if not ours:
            raise Busy(f"cannot remove the dead socket {path}: somebody has locked {path.parent}")
        try:
            connect_unix(path, timeout=1.0).close()
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # somebody listens, though busy, or it is gone


def listen_tcp(host: str, port: int) -> socket.socket:
    """Listen on one address, an empty host means all of them; port 0 takes a free one."""
    everywhere = not host
    if everywhere:
        # One socket for both: what comes over IPv4 arrives at an IPv6 socket too.
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise BadRequest(f"no such address: {host}: {error.strerror}") from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if everywhere and family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise IOFailed(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def prepare(connected: socket.socket) -> None:
    """Options of a connection: replies leave at once, long ones whole; dead peers are noticed."""
    connected.setblocking(True)
    if connected.family == socket.AF_UNIX:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    else:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def peer_of(connected: socket.socket) -> str:
    """Who is at the other end: ``pid 123, uid 1000`` or ``192.0.2.1:40000``."""
    if connected.family == socket.AF_UNIX:
        data = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        pid, uid, _ = CREDENTIALS.unpack(data)
        return f"pid {pid}, uid {uid}"
    host, port = connected.getpeername()[:2]
    return f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether every address of ``host`` stays on this machine."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    addresses = {str(entry[4][0]) for entry in found}
    return all(a.startswith("127.") or a == "::1" for a in addresses)
