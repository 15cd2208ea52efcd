"""What to type to use an export: the exact lines for QEMU, libvirt, the kernel and other clients.

Only texts are made here, from an address and a name; every special character is quoted as the
program that reads it wants: revisions are full of ``@{#}`` and paths may hold anything.
"""

from __future__ import annotations

import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

SAFE = "/@~^+-._"  # characters of a name that a URI may hold as they are
EVERYWHERE = ("", "0.0.0.0", "::")  # hosts that a server can listen on and nobody can connect to


@dataclass(frozen=True)
class Address:
    """Where a server listens: a unix socket, or a host and port, with TLS or without."""

    path: Path | None = None
    host: str = ""
    port: int = 0
    tls: bool = False

    @classmethod
    def parse(cls, text: str, *, tls: bool = False) -> Address:
        """From the form in which a server states its addresses: unix:PATH or tcp:HOST:PORT.

        Who listens on all addresses is reached by the name of this machine.
        """
        kind, _, rest = text.partition(":")
        if kind == "unix":
            return cls(path=Path(rest))
        host, _, port = rest.rpartition(":")
        if host in EVERYWHERE:
            host = socket.gethostname()
        return cls(host=host, port=int(port), tls=tls)

    def uri(self, export: str) -> str:
        """The NBD URI that libnbd's tools and QEMU understand."""
        name = quote(export, safe=SAFE)
        if self.path is not None:
            return f"nbd+unix:///{name}?socket={quote(str(self.path), safe=SAFE)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'nbds' if self.tls else 'nbd'}://{host}:{self.port}/{name}"


def qemu(address: Address, export: str, *, read_only: bool) -> list[str]:
    """Arguments for qemu-system, one after the other."""
    node = {"driver": "nbd", "node-name": "disk0", "export": export}
    arguments = []
    if address.path is not None:
        node |= {"server.type": "unix", "server.path": str(address.path)}
    else:
        node |= {"server.type": "inet", "server.host": address.host}
        node |= {"server.port": str(address.port)}
    if address.tls:
        arguments += ["-object", "tls-creds-x509,id=tls0,endpoint=client,dir=CERTIFICATES"]
        node["tls-creds"] = "tls0"
    node |= {"read-only": "on"} if read_only else {"discard": "unmap"}
    joined = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in node.items())
    return [*arguments, "-blockdev", joined, "-device", "virtio-blk-pci,drive=disk0"]


def libvirt(address: Address, export: str, *, read_only: bool) -> str:
    """The <disk> element of a domain."""
    if address.path is not None:
        host = f"<host transport='unix' socket={quoteattr(str(address.path))}/>"
    else:
        host = f"<host name={quoteattr(address.host)} port='{address.port}'/>"
    tls = " tls='yes'" if address.tls else ""
    lines = [
        "<disk type='network' device='disk'>",
        f"  <driver name='qemu' type='raw'{'' if read_only else ' discard=' + repr('unmap')}/>",
        f"  <source protocol='nbd' name={quoteattr(export)}{tls}>",
        f"    {host}",
        "  </source>",
        "  <target dev='vda' bus='virtio'/>",
        *(["  <readonly/>"] if read_only else []),
        "</disk>",
    ]
    return "\n".join(lines)


def nbd_client(address: Address, export: str, *, read_only: bool) -> list[str]:
    """The kernel's client; it wants root and the module nbd."""
    if address.path is not None:
        where = ["-unix", str(address.path), "/dev/nbd0"]
    else:
        where = [address.host, str(address.port), "/dev/nbd0"]
    tls = ["-certfile", "CERT", "-keyfile", "KEY", "-cacertfile", "CA"] if address.tls else []
    return ["nbd-client", *where, "-name", export, *tls, *(["-readonly"] if read_only else [])]


def recipes(address: Address, export: str, *, read_only: bool) -> dict[str, str]:
    """Every way to attach, as text to paste, by the name of the program."""
    uri = address.uri(export)
    read = ["--read-only"] if read_only else []
    return {
        "uri": uri,
        "qemu-system": shlex.join(qemu(address, export, read_only=read_only)),
        "libvirt": libvirt(address, export, read_only=read_only),
        "qemu-nbd": shlex.join(["qemu-nbd", *read, "--connect=/dev/nbd0", uri]),
        "nbd-client": shlex.join(nbd_client(address, export, read_only=read_only)),
        "nbdfuse": shlex.join(["nbdfuse", "MOUNTPOINT", uri]),
        "nbdcopy": shlex.join(["nbdcopy", uri, "FILE"]),
        "nbdinfo": shlex.join(["nbdinfo", uri]),
    }
